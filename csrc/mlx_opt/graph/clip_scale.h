// The gradient scale: it clips the gradients, and tells a step whether to skip.
#pragma once

#include <optional>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// min(max_norm / (norm + 1e-6), 1), or 1 without `max_norm`, in the dtype of `norm`. With
/// `skip_nonfinite` it is NaN if the norm is not finite. `norm` and `max_norm` are 0-d.
MLX_OPT_API GradientScale gradient_scale(
    const mx::array& norm,
    const std::optional<mx::array>& max_norm,
    bool skip_nonfinite,
    mx::StreamOrDevice s = {});

/// Throws std::invalid_argument if `max_norm` or `max_value` is negative.
MLX_OPT_API void check(const Clip& clip);

/// The same with a constant max_norm, and with the `max_value` of `clip`. Throws what `check` does.
MLX_OPT_API GradientScale
gradient_scale(const mx::array& norm, const Clip& clip, mx::StreamOrDevice s = {});

/// Queues a scale on its GPU if the gradients that it depends on are evaluated, so that the GPU
/// computes the norm while the host prepares the step.
MLX_OPT_API void begin_scale(const mx::array& scale);

} // namespace mlx_opt
