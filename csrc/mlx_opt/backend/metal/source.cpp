#include "mlx_opt/backend/metal/source.h"

#include <algorithm>
#include <stdexcept>

#include "mlx_opt/backend/metal/program.h"

namespace mlx_opt::metal {
namespace {

const char* name_of(Walk walk) {
  switch (walk) {
    case Walk::flat:
      return "flat";
    case Walk::transposed:
      return "transposed";
    case Walk::strided:
      return "strided";
    case Walk::strided_long:
      return "strided_long";
  }
  return "";
}

std::string arguments_of(const UpdateKernel& kernel) {
  switch (kernel.walk) {
    case Walk::flat:
      return "Pack<" + std::to_string(kernel.capacity) + ">&";
    case Walk::transposed:
      return "Matrix&";
    case Walk::strided:
    case Walk::strided_long:
      return "Strided<" + std::to_string(kernel.operands.in.size()) + ">&";
  }
  return "";
}

// The parameter that is input `k` of tensor `t`, or its output.
std::string input(int t, int k) {
  return "in" + std::to_string(t) + "_" + std::to_string(k);
}

std::string output(const Operands& operands, int t, int k) {
  return operands.written[k] == apart ? "out" + std::to_string(t) + "_" + std::to_string(k)
                                      : input(t, operands.written[k]);
}

// The parameters of all tensors: of each those that are read, then those that are written apart.
std::string slots_of(const UpdateKernel& kernel) {
  const Operands& operands = kernel.operands;
  const auto inputs = static_cast<int>(operands.in.size());
  const auto outputs = static_cast<int>(operands.out.size());
  std::string text;
  int index = operands_slot;
  for (int t = 0; t < kernel.capacity; ++t) {
    for (int k = 0; k < inputs; ++k) {
      const char* access = operands.overwrites(k) ? "" : "const ";
      text += std::string("    device ") + access + "uchar* " + input(t, k) + slot(index++);
    }
    for (int k = 0; k < outputs; ++k) {
      if (operands.written[k] == apart) {
        text += "    device uchar* " + output(operands, t, k) + slot(index++);
      }
    }
  }
  return text;
}

// The operands of tensor `t` as the driver's struct of them.
std::string operands_of(const Operands& operands, int t) {
  const auto fields = static_cast<int>(operands.out.size());
  std::string in, out;
  for (int k = 0; k < fields; ++k) {
    in += (k ? ", " : "") + input(t, k);
    out += (k ? ", " : "") + output(operands, t, k);
  }
  return "{{" + in + "}, " + input(t, fields) + ", {" + out + "}}";
}

// Which of a pack's tensors the threadgroup works on.
std::string choice_of(const UpdateKernel& kernel) {
  std::string text = "  Step::Operands at = " + operands_of(kernel.operands, 0) + ";\n";
  if (kernel.walk == Walk::flat) {
    text += "  uint which = 0;\n";
  }
  for (int t = 1; t < kernel.capacity; ++t) {
    const std::string tensor = std::to_string(t);
    text += "  if (group >= arguments.tensors[" + tensor +
            "].first_chunk) {\n    which = " + tensor + ";\n    at = Step::Operands" +
            operands_of(kernel.operands, t) + ";\n  }\n";
  }
  return text;
}

std::string call_of(Walk walk) {
  switch (walk) {
    case Walk::flat:
      return "flat(at, arguments.tensors[which], frames, group, index)";
    case Walk::transposed:
      return "transposed(at, arguments, frames, group, index, staged)";
    case Walk::strided:
      return "strided<uint>(at, arguments, frames, group, index)";
    case Walk::strided_long:
      return "strided<ulong>(at, arguments, frames, group, index)";
  }
  return "";
}

std::string update_of(const UpdateKernel& kernel) {
  const Operands& operands = kernel.operands;
  const auto fields = static_cast<int>(operands.out.size());
  std::string text = beginning_of(name(kernel), "constant", arguments_of(kernel), threads) +
                     slots_of(kernel) +
                     "    uint group [[threadgroup_position_in_grid]],\n"
                     "    uint index [[thread_index_in_threadgroup]]) {\n"
                     "  using namespace mlx_opt::MLX_OPT_LEVEL;\n  using Step = Update<" +
                     std::string(kernel.rule) + ", " + list_of(operands.in.data(), fields) + ", " +
                     format_of(operands.in[fields]) + ", " + list_of(operands.out.data(), fields) +
                     ", mlx_opt::Scaling::" + gpu::name_of(kernel.scaling) + ">;\n";
  if (kernel.walk == Walk::transposed) {
    text += "  threadgroup float staged[" + std::to_string(tile * (tile + 1)) + "];\n";
  }
  return text + choice_of(kernel) + "  Step::" + call_of(kernel.walk) + ";\n}\n";
}

std::string prepare_of(const PrepareKernel& kernel) {
  std::string text = beginning_of(name(kernel), "device", "Source*", 1);
  std::string all;
  for (int k = 0; k < kernel.capacity; ++k) {
    const std::string one = "scalar" + std::to_string(k);
    text += "    device const uchar* " + one + slot(operands_slot + k);
    all += (k ? ", " : "") + one;
  }
  return text +
         "    uint group [[threadgroup_position_in_grid]]) {\n"
         "  using namespace mlx_opt::MLX_OPT_LEVEL;\n"
         "  device const uchar* const scalars[] = {" +
         all + "};\n  prepare<" + std::string(kernel.rule) +
         ">(frames, arguments, scalars, group);\n}\n";
}

} // namespace

int Operands::slots() const {
  const auto own = std::count(written.begin(), written.end(), apart);
  return static_cast<int>(in.size()) + static_cast<int>(own);
}

bool Operands::overwrites(int input) const {
  return std::find(written.begin(), written.end(), input) != written.end();
}

int most_in_a_pack(const Operands& operands) {
  constexpr int room = slots - operands_slot;
  if (operands.slots() > room) {
    throw std::runtime_error(
        "mlx_opt: a step reads " + std::to_string(operands.in.size()) +
        " arrays of a tensor and writes " + std::to_string(operands.out.size()) + ", which are " +
        std::to_string(operands.slots()) + " buffers where results do not replace them, and a " +
        "kernel of Metal has room for " + std::to_string(room));
  }
  return room / operands.slots();
}

std::string name(const PrepareKernel& kernel) {
  return versioned(std::string(kernel.rule) + "_prepare" + std::to_string(kernel.capacity));
}

std::string name(const UpdateKernel& kernel) {
  const Operands& operands = kernel.operands;
  std::string text = versioned(
      std::string(kernel.rule) + "_" + name_of(kernel.walk) + std::to_string(kernel.capacity));
  for (Storage storage : operands.in) {
    text += std::string("_") + short_name_of(storage);
  }
  text += "_to";
  for (size_t k = 0; k < operands.out.size(); ++k) {
    text += std::string("_") + short_name_of(operands.out[k]);
    if (operands.written[k] != apart) {
      text += "at" + std::to_string(operands.written[k]);
    }
  }
  if (kernel.scaling != Scaling::none) {
    text += std::string("_scaled_") + gpu::name_of(kernel.scaling);
  }
  return text;
}

std::string source(const PrepareKernel& kernel, std::string_view rule_header) {
  return program_of(files_of(rule_header), prepare_of(kernel));
}

std::string source(const PrepareKernel& kernel) {
  return source(kernel, gpu::header_of(texts(), kernel.rule));
}

std::string source(const UpdateKernel& kernel, std::string_view rule_header) {
  return program_of(
      files_of(rule_header) + gpu::joined(texts(), {"scaling.h", "update.metal.h"}),
      update_of(kernel));
}

std::string source(const UpdateKernel& kernel) {
  return source(kernel, gpu::header_of(texts(), kernel.rule));
}

} // namespace mlx_opt::metal
