// Compiles kernels.
#pragma once

#include "mlx/backend/metal/device.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// The compiled kernel, which is compiled on the first call. Throws std::runtime_error with the
/// compiler's log.
template <typename Kernel>
MTL::ComputePipelineState* pipeline(const Kernel& kernel, mx::metal::Device& device) {
  const std::string own_name = name(kernel);
  auto* library = device.get_library(own_name, [&] { return source(kernel); });
  return device.get_kernel(own_name, library);
}

} // namespace mlx_opt::metal
