#include "mlx_opt/backend/metal/norm_source.h"

#include "mlx_opt/backend/metal/kernel_program.h"

namespace mlx_opt::metal {
namespace {

// The kernel's parameters: result, arguments, operands.
std::string parameters_of(const NormKernel& kernel) {
  const auto parameters = [](const std::string& result, const std::string& arguments) {
    return "    device " + result + "* result" + slot(result_slot) + "    constant " + arguments +
           "& arguments" + slot(arguments_slot);
  };
  const std::string tables = "mlx_opt::metal::";
  switch (kernel.kind) {
    case NormKind::norm:
      return parameters("float", "ulong") + "    device const mlx_opt::metal::Sum* sums" +
             slot(operands_slot);
    case NormKind::clip:
      return parameters("float", tables + "Clip") + "    device const float* norm" +
             slot(operands_slot) + "    device const float* traced_max_norm" +
             slot(operands_slot + 1);
    case NormKind::squares:
    case NormKind::strided_squares:
    case NormKind::strided_squares_long:
      break;
  }
  const bool flat = kernel.kind == NormKind::squares;
  std::string text = parameters(
      tables + "Sum",
      tables + (flat ? "Pack<" + std::to_string(kernel.capacity) + ">" : "Strided<1>"));
  for (int t = 0; t < kernel.capacity; ++t) {
    text += "    device const uchar* operand" + std::to_string(t) + slot(operands_slot + t);
  }
  return text + "    uint group [[threadgroup_position_in_grid]],\n";
}

// Text that finds which of a pack's tensors the threadgroup works on.
std::string choice_of(const NormKernel& kernel) {
  std::string text = "  device const uchar* operand = operand0;\n  uint which = 0;\n";
  for (int t = 1; t < kernel.capacity; ++t) {
    const std::string tensor = std::to_string(t);
    text += "  if (group >= arguments.tensors[" + tensor +
            "].first_chunk) {\n    which = " + tensor + ";\n    operand = operand" + tensor +
            ";\n  }\n";
  }
  return text;
}

std::string body_of(const NormKernel& kernel) {
  const std::string squares = "  Squares<" + std::string(format_of(kernel.storage)) + ">::";
  switch (kernel.kind) {
    case NormKind::squares:
      return choice_of(kernel) + squares +
             "flat(result, operand, arguments.tensors[which], group, index, staged);\n";
    case NormKind::strided_squares:
      return squares + "strided<uint>(result, operand0, arguments, group, index, staged);\n";
    case NormKind::strided_squares_long:
      return squares + "strided<ulong>(result, operand0, arguments, group, index, staged);\n";
    case NormKind::norm:
      return "  Norm::root(result, arguments, sums, index, staged);\n";
    case NormKind::clip:
      return "  if (index == 0) {\n    Norm::scale(result, arguments, norm, traced_max_norm);\n  "
             "}\n";
  }
  return "";
}

const char* name_of(NormKind kind) {
  switch (kind) {
    case NormKind::squares:
      return "squares";
    case NormKind::strided_squares:
      return "strided_squares";
    case NormKind::strided_squares_long:
      return "strided_squares_long";
    case NormKind::norm:
      return "norm";
    case NormKind::clip:
      return "clip";
  }
  return "";
}

} // namespace

std::string name(const NormKernel& kernel) {
  const std::string text = versioned(std::string("Norm_") + name_of(kernel.kind));
  if (kernel.kind == NormKind::norm || kernel.kind == NormKind::clip) {
    return text;
  }
  return text + std::to_string(kernel.capacity) + "_" + short_name_of(kernel.storage);
}

std::string source(const NormKernel& kernel) {
  const bool alone = kernel.kind == NormKind::clip;
  const std::string size = std::to_string(alone ? 1 : threads);
  std::string staged;
  if (!alone) {
    staged = "  threadgroup Sum staged[" + size + "];\n";
  }
  return program_of(
      gpu::joined(
          texts(),
          {"portable.h",
           "clip.h",
           "tables.h",
           "norm_tables.h",
           "storage.metal.h",
           "walks.metal.h",
           "norm.metal.h"}),
      "\n[[kernel, max_total_threads_per_threadgroup(" + size + ")]] void " + name(kernel) + "(\n" +
          parameters_of(kernel) +
          "    uint index [[thread_index_in_threadgroup]]) {\n"
          "  using namespace mlx_opt::MLX_OPT_LEVEL;\n" +
          staged + body_of(kernel) + "}\n");
}

} // namespace mlx_opt::metal
