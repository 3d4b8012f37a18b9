// The norm of many tensors together, on an NVIDIA GPU.
#pragma once

#include <vector>

#include "mlx/array.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

/// Queues on `stream`: `output`, a float32, = the square root of the sum of the squares of all
/// elements, summed in double precision in an order that depends on the shapes alone.
void enqueue_norm(const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream);

/// Queues on `stream`: `scale`, a float32, = what gradients of norm `inputs[0]` are multiplied with
/// where the norm is to be no more than `inputs[1]`, or without that than `max_norm`. All that is
/// queued goes to the GPU at once: it is at work while the host makes ready the step.
void enqueue_clip(
    const std::vector<mx::array>& inputs,
    float max_norm,
    bool skip_nonfinite,
    mx::array& scale,
    mx::Stream stream);

} // namespace mlx_opt::cuda
