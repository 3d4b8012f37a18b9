#include "mlx_opt/backend/cuda/kernel_source.h"

#include "mlx_opt/backend/cuda/kernel_program.h"
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

// Table<1, 1, 56>, or Strided<1, 1> if the capacity is 0.
std::string table_of(int inputs, int outputs, int capacity) {
  const std::string width = std::to_string(inputs) + ", " + std::to_string(outputs);
  return capacity ? "Table<" + width + ", " + std::to_string(capacity) + ">"
                  : "Strided<" + width + ">";
}

// Name<a, b>
std::string called(const char* name, std::initializer_list<std::string> arguments) {
  std::string text = std::string(name) + "<";
  for (const std::string& argument : arguments) {
    text += (text.back() == '<' ? "" : ", ") + argument;
  }
  return text + ">";
}

Program program_of(const PrepareKernel& kernel) {
  return {
      joined(texts(), {"portable.h"}) + std::string(header_of(texts(), kernel.rule)) +
          (kernel.has_ema ? joined(texts(), {"ema.h"}) : "") +
          joined(texts(), {"scalar_tables.h", "uniforms.cu.h", "prepare.cu.h"}),
      "ScalarTable<" + std::to_string(kernel.hypers) + ", " + std::to_string(kernel.capacity) + ">",
      "prepare<" + gpu::preparing_rule_of(kernel.rule, kernel.has_ema) + ">",
      ""};
}

// Update<AdamW, List<Float32, Float32, Float32>, Float32, List<...>, mlx_opt::Scaling::none,
// Nearest>
std::string pass_of(const UpdateKernel& kernel) {
  const int fields = kernel.in.count() - (kernel.pass == Pass::finish ? 0 : 1);
  const Storage* in = kernel.in.data();
  const std::string rule = gpu::rule_of(kernel.rule, kernel.masters, kernel.has_ema, in[0]);
  const std::string parameter = format_of(in[0]);
  const std::string state = list_of(in + 1, fields - 1);
  const std::string out = list_of(kernel.out.data(), kernel.out.count());
  const std::string scaling = std::string("mlx_opt::Scaling::") + gpu::name_of(kernel.scaling);
  const std::string rounding = kernel.rounds ? "Stochastic" : "Nearest";
  switch (kernel.pass) {
    case Pass::whole:
      if (kernel.scales > 0) {
        const std::string scales = std::to_string(kernel.scales);
        return called(
            "CodedUpdate",
            {rule, list_of(in, fields), format_of(in[fields]), out, scaling, rounding, scales});
      }
      return called(
          "Update", {rule, list_of(in, fields), format_of(in[fields]), out, scaling, rounding});
    case Pass::state:
      return called("UpdateState", {rule, parameter, state, format_of(in[fields]), out, scaling});
    case Pass::finish:
      return called("Finish", {rule, parameter, state, format_of(kernel.out[0]), scaling});
    case Pass::finish_with_gradient:
      return called(
          "FinishWithGradient", {rule, parameter, state, format_of(in[fields]), out, scaling});
  }
  return "";
}

// The files of the kernels of a rule's passes.
std::string files_of_passes(std::string_view rule_header, bool two_passes) {
  const std::string rule = joined(texts(), {"portable.h"}) + std::string(rule_header);
  const std::string walks = joined(
      texts(),
      {"scaling.h",
       "tables.h",
       "storage.cu.h",
       "find.cu.h",
       "uniforms.cu.h",
       "patch.cu.h",
       "walk.cu.h"});
  return rule + walks +
         (two_passes ? joined(texts(), {"passes.h", "block_sum.cu.h", "two_pass.cu.h"})
                     : joined(texts(), {"update.cu.h"}));
}

// Without a number of blocks the compiler aims for the most and spills registers for them. The sums
// of a pass stay in registers.
std::string bounds_of(const UpdateKernel& kernel) {
  switch (kernel.walk) {
    case Walk::flat:
      return kernel.sums > 2 ? "threads, 4" : "threads";
    case Walk::transposed:
      return kernel.in.count() > 4 || kernel.scales > 0 ? "threads, 3" : "threads, 4";
    case Walk::strided:
      return kernel.scales > 0 ? "threads, 2" : "threads";
  }
  return "";
}

Program program_of(const UpdateKernel& kernel, std::string_view rule_header) {
  return {
      files_of_passes(rule_header, kernel.pass != Pass::whole) +
          (kernel.scales > 0 ? joined(texts(), {"codes.h", "codes.cu.h", "coded_update.cu.h"})
                             : "") +
          gpu::files_of(texts(), kernel.masters, kernel.has_ema, "bits16.cu.h") +
          gpu::rounding_files_of(texts(), kernel.rounds, "rounding.cu.h"),
      table_of(kernel.inputs(), kernel.outputs(), kernel.capacity),
      (kernel.scales > 0 ? "CodedWalks<" : "Walks<") + pass_of(kernel) +
          ">::" + name_of(kernel.walk),
      bounds_of(kernel),
      kernel.clips};
}

Program program_of(const UpdateKernel& kernel) {
  return program_of(kernel, header_of(texts(), kernel.rule));
}

Program program_of(const RatesKernel& kernel) {
  return {
      files_of_passes(header_of(texts(), kernel.rule), true),
      table_of(1, 1, kernel.capacity),
      "rates<" + std::string(kernel.rule) + ">",
      "rates_threads"};
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
  return (program.clips ? "#define MLX_OPT_CLIPS\n" : "") + program.files +
         "\nextern \"C\" __global__ void " + bounds + kernel_name +
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
