// Builds the programs of kernels.
#pragma once

#include <string>

#include "mlx_opt/backend/cuda/kernel.h"
#include "mlx_opt/backend/gpu/texts.h"

namespace mlx_opt::cuda {

/// The kernels' source files, which the build embeds.
const gpu::Texts& texts();

struct Program {
  std::string files;     // contents of the source files that it needs
  std::string parameter; // type of the kernel's parameter, in namespace mlx_opt::cuda
  std::string call;      // name of the function that takes it, in the rules' namespace
  std::string
      bounds; // arguments of __launch_bounds__, the first of namespace mlx_opt::cuda; or empty
  bool clips = false; // true if elements of the gradients are clipped
};

Program program_of(const AdafactorKernel& kernel);

} // namespace mlx_opt::cuda
