// The source text of Adafactor's kernels.
#include "mlx_opt/backend/cuda/kernel_program.h"
#include "mlx_opt/backend/gpu/formats.h"

namespace mlx_opt::cuda {
namespace {

// The file and the class of a pass.
struct Definition {
  const char* file;
  const char* name;
};

Definition definition_of(AdafactorPass pass) {
  switch (pass) {
    case AdafactorPass::squares:
      return {"adafactor_squares.cu.h", "AdafactorSquares"};
    case AdafactorPass::means:
      return {"adafactor_means.cu.h", "AdafactorMeans"};
    case AdafactorPass::update_squares:
      return {"adafactor_squares.cu.h", "AdafactorUpdateSquares"};
    case AdafactorPass::rates:
      return {"adafactor_means.cu.h", "adafactor_rates"};
    case AdafactorPass::update:
      return {"adafactor_update.cu.h", "AdafactorUpdate"};
  }
  return {};
}

std::string bounds_of(const AdafactorKernel& kernel) {
  switch (kernel.pass) {
    case AdafactorPass::squares:
    case AdafactorPass::update_squares:
      return "threads, 4";
    case AdafactorPass::update:
      return kernel.first_moment ? "threads, 2" : "threads, 3";
    case AdafactorPass::means:
    case AdafactorPass::rates:
      break;
  }
  return "adafactor_threads, 2";
}

std::string call_of(const AdafactorKernel& kernel) {
  std::string text = definition_of(kernel.pass).name;
  if (kernel.pass == AdafactorPass::rates) {
    return text;
  }
  text += "<";
  for (const Storages& storages : {kernel.in, kernel.out}) {
    for (int k = 0; k < storages.count(); ++k) {
      text += std::string(gpu::format_of(storages[k])) + ", ";
    }
  }
  if (kernel.pass == AdafactorPass::update) {
    text += kernel.first_moment ? "true, " : "false, ";
  }
  return text + std::to_string(kernel.vector_width) + ">::run";
}

} // namespace

Program program_of(const AdafactorKernel& kernel) {
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
           "patch.cu.h",
           "adafactor.cu.h",
           definition_of(kernel.pass).file}),
      kernel.capacity ? "AdafactorTable<" + std::to_string(kernel.capacity) + ">"
                      : "AdafactorStrided",
      call_of(kernel),
      bounds_of(kernel),
      kernel.clips};
}

} // namespace mlx_opt::cuda
