// Loads kernels.
#pragma once

#include <cuda.h>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/kernel.h"

namespace mlx_opt::cuda {

/// The kernel on `device`, which must be the current one. It is compiled or read from disk on the
/// first call and kept for the life of the process. Throws std::runtime_error with the reason if
/// that fails.
CUfunction function(const Kernel& kernel, const mlx::core::cu::Device& device);

/// The capacity of a table of records of `record` bytes, for a launch over `tensors` of them.
int table_capacity(size_t record, size_t tensors, const mlx::core::cu::Device& device);

} // namespace mlx_opt::cuda
