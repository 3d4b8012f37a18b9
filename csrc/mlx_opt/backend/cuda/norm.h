// The norm of many tensors together, on an NVIDIA GPU.
#pragma once

#include <vector>

#include "mlx/array.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

/// Queues on `stream`: `output`, a float32, = the square root of the sum of the squares of all
/// elements, summed in double precision in an order that depends on the shapes alone.
void enqueue_norm(const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream);

} // namespace mlx_opt::cuda
