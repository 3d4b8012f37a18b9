// The programs of Adafactor's kernels.
#include "mlx_opt/backend/cuda/program.h"
#include "mlx_opt/backend/gpu/formats.h"

namespace mlx_opt::cuda {
namespace {

// The file and the name of a pass.
struct Definition {
  const char* file;
  const char* name;
};

Definition definition_of(FactorPass pass) {
  switch (pass) {
    case FactorPass::squares:
      return {"adafactor_squares.cu.h", "FactorSquares"};
    case FactorPass::means:
      return {"adafactor_means.cu.h", "FactorMeans"};
    case FactorPass::update_squares:
      return {"adafactor_squares.cu.h", "FactorUpdateSquares"};
    case FactorPass::rates:
      return {"adafactor_means.cu.h", "factor_rates"};
    case FactorPass::update:
      return {"adafactor_update.cu.h", "FactorUpdate"};
  }
  return {};
}

std::string bounds_of(FactorPass pass) {
  switch (pass) {
    case FactorPass::squares:
    case FactorPass::update_squares:
      return "threads, 4";
    case FactorPass::update:
      return "threads, 2";
    case FactorPass::means:
    case FactorPass::rates:
      break;
  }
  return "factor_threads";
}

std::string call_of(const FactorKernel& kernel) {
  std::string text = definition_of(kernel.pass).name;
  if (kernel.pass == FactorPass::rates) {
    return text;
  }
  text += "<";
  for (const Storages& storages : {kernel.in, kernel.out}) {
    for (int k = 0; k < storages.count(); ++k) {
      text += std::string(gpu::format_of(storages[k])) + ", ";
    }
  }
  if (kernel.pass == FactorPass::update) {
    text += kernel.first_moment ? "true, " : "false, ";
  }
  return text + std::to_string(kernel.vector_width) + ">::run";
}

} // namespace

Program program_of(const FactorKernel& kernel) {
  return {
      gpu::joined(
          texts(),
          {"portable.h",
           "adafactor.h",
           "tables.h",
           "adafactor_tables.h",
           "storage.cu.h",
           "find.cu.h",
           "uniforms.cu.h",
           "block_sum.cu.h",
           "adafactor.cu.h",
           definition_of(kernel.pass).file}),
      kernel.capacity ? "FactorTable<" + std::to_string(kernel.capacity) + ">" : "FactorStrided",
      call_of(kernel),
      bounds_of(kernel.pass)};
}

} // namespace mlx_opt::cuda
