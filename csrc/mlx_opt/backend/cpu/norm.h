// The global norm of many tensors on the CPU.
#pragma once

#include <vector>

#include "mlx/array.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// The global norm of evaluated arrays. Sums are in double precision, in an order that does not
/// depend on the number of threads.
float norm(const std::vector<mx::array>& arrays);

/// Queues the computation of the norm of `arrays` on `stream`, into `*result`.
void enqueue_norm(mx::Stream stream, const std::vector<mx::array>& arrays, float* result);

} // namespace mlx_opt::cpu
