// The norm of many tensors together, on the CPU.
#pragma once

#include <vector>

#include "mlx/array.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// Queues on `stream`: `*result` = the square root of the sum of the squares of all elements,
/// summed in double precision in an order that does not depend on the number of threads.
void enqueue_norm(mx::Stream stream, const std::vector<mx::array>& arrays, float* result);

} // namespace mlx_opt::cpu
