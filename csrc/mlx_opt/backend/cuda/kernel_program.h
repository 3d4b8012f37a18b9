// What the programs of kernels are written from.
#pragma once

#include <string>

#include "mlx_opt/backend/cuda/kernel.h"
#include "mlx_opt/backend/gpu/texts.h"

namespace mlx_opt::cuda {

/// The files of the kernels. Made by the build.
const gpu::Texts& texts();

struct Program {
  std::string files;     // contents of those that it needs
  std::string parameter; // type of the kernel's only one, in namespace mlx_opt::cuda
  std::string call;      // of a function that takes it, in the rules' namespace
  std::string
      bounds; // arguments of __launch_bounds__, the first of namespace mlx_opt::cuda; or empty
};

Program program_of(const AdafactorKernel& kernel);

} // namespace mlx_opt::cuda
