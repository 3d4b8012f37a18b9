// Kernels ready to be launched.
#pragma once

#include <cuda.h>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/kernel.h"

namespace mlx_opt::cuda {

/// The kernel on `device`, the current one: compiled or read from disk when first asked for, and
/// kept for the life of the process. Throws std::runtime_error with what is missing.
CUfunction function(const Kernel& kernel, const mlx::core::cu::Device& device);

/// How many tensors a table holds, each a record of so many bytes, for a launch over `tensors` of
/// them.
int table_capacity(size_t record, size_t tensors, const mlx::core::cu::Device& device);

} // namespace mlx_opt::cuda
