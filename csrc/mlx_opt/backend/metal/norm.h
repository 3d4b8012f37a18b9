// The global norm of many tensors on an Apple GPU.
#pragma once

#include <vector>

#include "mlx/array.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// Queues the computation of the global norm of `arrays` on `stream`, into `output`, a float32,
/// within a relative 2^-23. The order of the sums depends only on the shapes.
void enqueue_norm(const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream);

/// Queues the computation of the gradient scale on `stream`, into `scale`, a float32. `inputs`: the
/// norm, and the traced max_norm if there is one; then `max_norm` is ignored.
void enqueue_clip(
    const std::vector<mx::array>& inputs,
    float max_norm,
    bool skip_nonfinite,
    mx::array& scale,
    mx::Stream stream);

} // namespace mlx_opt::metal
