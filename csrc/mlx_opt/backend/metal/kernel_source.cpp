#include "mlx_opt/backend/metal/kernel_source.h"

#include "mlx_opt/backend/metal/kernel_program.h"

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

// The initialiser of the driver's struct of a tensor's operands.
std::string operands_of(const UpdateKernel& kernel, int tensor) {
  const Operands& operands = kernel.operands;
  const int fields = kernel.fields(), outputs = fields + kernel.scales;
  const std::string of_step = "{{" + inputs_of(tensor, fields) + "}, " + input_of(tensor, outputs) +
                              ", {" + outputs_of(operands, tensor, 0, fields) + "}, 0}";
  return kernel.scales == 0 ? of_step
                            : "{" + of_step + ", {" + inputs_of(tensor, fields, outputs) + "}, {" +
                                  outputs_of(operands, tensor, fields, outputs) + "}}";
}

std::string call_of(const UpdateKernel& kernel) {
  const std::string rest = kernel.scales > 0 ? ", sizes)" : ")";
  switch (kernel.walk) {
    case Walk::flat:
      return "flat(at, arguments.tensors[which], group_uniforms, group, index" + rest;
    case Walk::transposed:
      return "transposed(at, arguments, group_uniforms, group, index, staged)";
    case Walk::strided:
      return "strided<uint>(at, arguments, group_uniforms, group, index" + rest;
    case Walk::strided_long:
      return "strided<ulong>(at, arguments, group_uniforms, group, index" + rest;
  }
  return "";
}

std::string update_of(const UpdateKernel& kernel) {
  const Operands& operands = kernel.operands;
  const int fields = kernel.fields();
  const std::string scales = std::to_string(kernel.scales);
  std::string text =
      beginning_of(name(kernel), "constant", arguments_of(kernel, fields + 1), threads) +
      parameters_of(operands, kernel.capacity, operands_slot) +
      "    uint group [[threadgroup_position_in_grid]],\n"
      "    uint index [[thread_index_in_threadgroup]]) {\n"
      "  using namespace mlx_opt::MLX_OPT_LEVEL;\n  using Step = " +
      (kernel.scales > 0 ? "CodedUpdate<" : "Update<") +
      gpu::rule_of(kernel.rule, kernel.masters, kernel.has_ema, operands.in[0]) + ", " +
      list_of(operands.in.data(), fields) + ", " + format_of(operands.in.back()) + ", " +
      list_of(operands.out.data(), fields) + ", mlx_opt::Scaling::" + gpu::name_of(kernel.scaling) +
      (kernel.scales > 0 ? ", " + scales : "") + (kernel.rounds ? ", Stochastic" : "") + ">;\n";
  if (kernel.walk == Walk::transposed) {
    text += "  threadgroup float staged[" + std::to_string(tile * (tile + 1)) + "];\n";
  }
  if (kernel.scales > 0) {
    text += "  threadgroup int sizes[" + scales + " * " + std::to_string(threads) + "];\n";
  }
  const auto at = [&](int tensor) { return operands_of(kernel, tensor); };
  return text + choice_of(kernel, at) + "  Step::" + call_of(kernel) + ";\n}\n";
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
         all + "};\n  prepare<" + gpu::preparing_rule_of(kernel.rule, kernel.has_ema) +
         ">(group_uniforms, arguments, scalars, group);\n}\n";
}

} // namespace

std::string arguments_of(const UpdateKernel& kernel, int operands) {
  switch (kernel.walk) {
    case Walk::flat:
      return "Pack<" + std::to_string(kernel.capacity) + ">&";
    case Walk::transposed:
      return "Matrix&";
    case Walk::strided:
    case Walk::strided_long:
      return "Strided<" + std::to_string(operands) + ">&";
  }
  return "";
}

std::string choice_of(const UpdateKernel& kernel, const std::function<std::string(int)>& at) {
  std::string text = "  Step::Operands at = " + at(0) + ";\n";
  if (kernel.walk == Walk::flat) {
    text += "  uint which = 0;\n";
  }
  for (int t = 1; t < kernel.capacity; ++t) {
    const std::string tensor = std::to_string(t);
    text += "  if (group >= arguments.tensors[" + tensor +
            "].first_chunk) {\n    which = " + tensor + ";\n    at = Step::Operands" + at(t) +
            ";\n  }\n";
  }
  return text;
}

std::string words_of(const UpdateKernel& kernel) {
  const Operands& operands = kernel.operands;
  const std::string stage = kernel.rounds ? "rounds" : gpu::name_of(kernel.masters);
  std::string text = (kernel.has_ema ? "ema_" : "") + stage + (stage.empty() ? "" : "_");
  text = (kernel.scales > 0 ? "codes_" : "") + text;
  text += name_of(kernel.walk) + std::to_string(kernel.capacity);
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

std::string name(const PrepareKernel& kernel) {
  const std::string text = kernel.has_ema ? "_ema_prepare" : "_prepare";
  return versioned(std::string(kernel.rule) + text + std::to_string(kernel.capacity));
}

std::string name(const UpdateKernel& kernel) {
  return versioned(std::string(kernel.rule) + "_" + words_of(kernel));
}

std::string source(const PrepareKernel& kernel, std::string_view rule_header) {
  const std::string ema = kernel.has_ema ? gpu::joined(texts(), {"ema.h"}) : "";
  return program_of(files_of(rule_header) + ema, prepare_of(kernel));
}

std::string source(const PrepareKernel& kernel) {
  return source(kernel, gpu::header_of(texts(), kernel.rule));
}

std::string source(const UpdateKernel& kernel, std::string_view rule_header) {
  return program_of(
      files_of(rule_header) + gpu::joined(texts(), {"scaling.h", "update.metal.h"}) +
          (kernel.scales > 0 ? gpu::joined(texts(), {"codes.h", "codes.metal.h"}) : "") +
          gpu::files_of(texts(), kernel.masters, kernel.has_ema, "bits16.metal.h") +
          gpu::rounding_files_of(texts(), kernel.rounds, "rounding.metal.h"),
      update_of(kernel));
}

std::string source(const UpdateKernel& kernel) {
  return source(kernel, gpu::header_of(texts(), kernel.rule));
}

} // namespace mlx_opt::metal
