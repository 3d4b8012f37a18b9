#include "mlx_opt/backend/cuda/source.h"

#include "mlx_opt/backend/cuda/program.h"
#include "mlx_opt/backend/gpu/formats.h"

namespace mlx_opt::cuda {
namespace {

using gpu::format_of;
using gpu::header_of;
using gpu::joined;
using gpu::list_of;

const char* name_of(Walk walk) {
  switch (walk) {
    case Walk::flat:
      return "flat";
    case Walk::transposed:
      return "transposed";
    case Walk::strided:
      return "strided";
  }
  return "";
}

// Table<1, 1, 56>, or Strided<1, 1> where there is none.
std::string table_of(int inputs, int outputs, int capacity) {
  const std::string width = std::to_string(inputs) + ", " + std::to_string(outputs);
  return capacity ? "Table<" + width + ", " + std::to_string(capacity) + ">"
                  : "Strided<" + width + ">";
}

Program program_of(const PrepareKernel& kernel) {
  return {
      joined(texts(), {"portable.h"}) + std::string(header_of(texts(), kernel.rule)) +
          joined(texts(), {"scalar_tables.h", "frame.cu.h", "prepare.cu.h"}),
      "ScalarTable<" + std::to_string(kernel.hypers) + ", " + std::to_string(kernel.capacity) + ">",
      "prepare<" + std::string(kernel.rule) + ">",
      ""};
}

Program program_of(const UpdateKernel& kernel, std::string_view rule_header) {
  const int fields = kernel.out.count();
  return {
      joined(texts(), {"portable.h"}) + std::string(rule_header) +
          joined(
              texts(),
              {"scaling.h", "tables.h", "storage.cu.h", "find.cu.h", "frame.cu.h", "update.cu.h"}),
      table_of(kernel.in.count(), fields, kernel.capacity),
      "Update<" + std::string(kernel.rule) + ", " + list_of(kernel.in.data(), fields) + ", " +
          format_of(kernel.in[fields]) + ", " + list_of(kernel.out.data(), fields) +
          ", mlx_opt::Scaling::" + gpu::name_of(kernel.scaling) + ">::" + name_of(kernel.walk),
      // Left to itself the compiler goes for the most blocks, and spills registers for them.
      kernel.walk == Walk::transposed ? "threads, 4" : "threads"};
}

Program program_of(const UpdateKernel& kernel) {
  return program_of(kernel, header_of(texts(), kernel.rule));
}

Program program_of(const SquaresKernel& kernel) {
  return {
      joined(
          texts(),
          {"portable.h",
           "tables.h",
           "norm_tables.h",
           "storage.cu.h",
           "find.cu.h",
           "block_sum.cu.h",
           "squares.cu.h"}),
      table_of(1, 1, kernel.capacity),
      std::string("Squares<") + format_of(kernel.storage) +
          ">::" + (kernel.capacity ? "flat" : "strided"),
      "threads"};
}

Program program_of(const NormKernel&) {
  return {
      joined(texts(), {"portable.h", "norm_tables.h", "block_sum.cu.h", "norm.cu.h"}),
      "Sums",
      "norm",
      "norm_threads"};
}

Program program_of(const ClipKernel&) {
  return {
      joined(texts(), {"portable.h", "clip.h", "norm_tables.h", "clip.cu.h"}), "Clip", "clip", ""};
}

std::string text_of(const Program& program) {
  const std::string bounds =
      program.bounds.empty() ? "" : "__launch_bounds__(mlx_opt::cuda::" + program.bounds + ") ";
  return program.files + "\nextern \"C\" __global__ void " + bounds + kernel_name +
         "(const __grid_constant__ mlx_opt::cuda::" + program.parameter +
         " parameter) {\n  using namespace mlx_opt::MLX_OPT_LEVEL;\n  " + program.call +
         "(parameter);\n}\n";
}

} // namespace

std::string source(const Kernel& kernel) {
  return std::visit([](const auto& k) { return text_of(program_of(k)); }, kernel);
}

std::string source(const UpdateKernel& kernel, std::string_view rule_header) {
  return text_of(program_of(kernel, rule_header));
}

} // namespace mlx_opt::cuda
