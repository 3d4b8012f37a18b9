#include "mlx_opt/backend/metal/source.h"

#include "mlx_opt/backend/metal/program.h"

namespace mlx_opt::metal {

namespace {

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::prepare:
      return "prepare";
    case Kind::flat:
      return "flat";
    case Kind::transposed:
      return "transposed";
    case Kind::strided:
      return "strided";
    case Kind::strided_long:
      return "strided_long";
  }
  return "";
}

const char* name_of(Scaling scaling) {
  switch (scaling) {
    case Scaling::none:
      return "none";
    case Scaling::always:
      return "always";
    case Scaling::if_finite:
      return "if_finite";
  }
  return "";
}

std::string arguments_of(const Kernel& kernel) {
  switch (kernel.kind) {
    case Kind::prepare:
      return "Constants";
    case Kind::flat:
      return "Pack<" + std::to_string(kernel.capacity) + ">";
    case Kind::transposed:
      return "Matrix";
    case Kind::strided:
    case Kind::strided_long:
      return "Strided";
  }
  return "";
}

// The operands of tensor `t` as the driver's struct of them.
std::string operands_of(int t, int fields) {
  const auto names = [&](const char* kind) {
    std::string text = "{";
    for (int k = 0; k < fields; ++k) {
      text += (k ? ", " : "") + std::string(kind) + std::to_string(t) + "_" + std::to_string(k);
    }
    return text + "}";
  };
  return "{" + names("in") + ", gradient" + std::to_string(t) + ", " + names("out") + "}";
}

std::string slots_of(const Kernel& kernel) {
  const int fields = info(kernel.rule).moments + 1;
  std::string text;
  int index = operands_slot;
  for (int t = 0; t < kernel.capacity; ++t) {
    const std::string tensor = std::to_string(t);
    for (int k = 0; k < fields; ++k) {
      text += "    device const uchar* in" + tensor + "_" + std::to_string(k) + slot(index++);
    }
    text += "    device const uchar* gradient" + tensor + slot(index++);
    for (int k = 0; k < fields; ++k) {
      text += "    device uchar* out" + tensor + "_" + std::to_string(k) + slot(index++);
    }
  }
  return text;
}

// Which of a pack's tensors the threadgroup works on.
std::string choice_of(const Kernel& kernel) {
  const int fields = info(kernel.rule).moments + 1;
  std::string text = "  Step::Operands at = " + operands_of(0, fields) + ";\n";
  if (kernel.kind == Kind::flat) {
    text += "  uint which = 0;\n";
  }
  for (int t = 1; t < kernel.capacity; ++t) {
    const std::string tensor = std::to_string(t);
    text += "  if (group >= arguments.tensors[" + tensor +
            "].first_chunk) {\n    which = " + tensor + ";\n    at = Step::Operands" +
            operands_of(t, fields) + ";\n  }\n";
  }
  return text;
}

std::string call_of(const Kernel& kernel) {
  switch (kernel.kind) {
    case Kind::flat:
      return "flat(at, arguments.tensors[which], frame, group, index)";
    case Kind::transposed:
      return "transposed(at, arguments, frame, group, index, staged)";
    case Kind::strided:
      return "strided<uint>(at, arguments, frame, group, index)";
    case Kind::strided_long:
      return "strided<ulong>(at, arguments, frame, group, index)";
    case Kind::prepare:
      break;
  }
  return "";
}

std::string update_of(const Kernel& kernel) {
  const int fields = info(kernel.rule).moments + 1;
  std::string text = beginning_of(name(kernel), arguments_of(kernel), "constant", threads) +
                     slots_of(kernel) +
                     "    uint group [[threadgroup_position_in_grid]],\n"
                     "    uint index [[thread_index_in_threadgroup]]) {\n"
                     "  using namespace mlx_opt::MLX_OPT_LEVEL;\n  using Step = Update<" +
                     std::string(info(kernel.rule).name) + ", " + list_of(kernel.in, fields) +
                     ", " + format_of(kernel.in[fields]) + ", " + list_of(kernel.out, fields) +
                     ", Scaling::" + name_of(kernel.scaling) + ">;\n";
  if (kernel.kind == Kind::transposed) {
    text += "  threadgroup float staged[" + std::to_string(tile * (tile + 1)) + "];\n";
  }
  return text + choice_of(kernel) + "  Step::" + call_of(kernel) + ";\n}\n";
}

} // namespace

std::string name(const Kernel& kernel) {
  std::string text = versioned(std::string(info(kernel.rule).name) + "_" + name_of(kernel.kind));
  if (kernel.kind == Kind::prepare) {
    return text;
  }
  const int fields = info(kernel.rule).moments + 1;
  text += std::to_string(kernel.capacity);
  for (int k = 0; k <= fields; ++k) {
    text += std::string("_") + short_name_of(kernel.in[k]);
  }
  text += "_to";
  for (int k = 0; k < fields; ++k) {
    text += std::string("_") + short_name_of(kernel.out[k]);
  }
  if (kernel.scaling != Scaling::none) {
    text += std::string("_scaled_") + name_of(kernel.scaling);
  }
  return text;
}

std::string source(const Kernel& kernel) {
  const auto& rule = info(kernel.rule);
  return program_of(
      kernel.kind == Kind::prepare ? prepare_of(name(kernel), std::string(rule.name), rule.hypers)
                                   : update_of(kernel));
}

} // namespace mlx_opt::metal
