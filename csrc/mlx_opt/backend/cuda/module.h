// Kernels ready to be launched.
#pragma once

#include <cuda.h>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/source.h"

namespace mlx_opt::cuda {

/// The most tensors that a table holds where a kernel's parameters may take 4 KB, and where, from
/// CUDA 12.1 on, on GPUs of 7.0 and up, 32,764 bytes.
struct Capacities {
  int small, large;
};
inline constexpr Capacities capacities = {56, 454};
inline constexpr Capacities factor_capacities = {22, 177};

/// The kernel on `device`, the current one: compiled or read from disk when first asked for, and
/// kept for the life of the process. Throws std::runtime_error with what is missing.
CUfunction function(const Kernel& kernel, const mlx::core::cu::Device& device);

/// How many tensors a table holds for a launch over `tensors` of them.
int table_capacity(const Capacities& of, size_t tensors, const mlx::core::cu::Device& device);

} // namespace mlx_opt::cuda
