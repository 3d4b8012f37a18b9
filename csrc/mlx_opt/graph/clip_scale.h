// The scale of the gradients that clips them, or leaves a step out.
#pragma once

#include <optional>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// min(max_norm / (norm + 1e-6), 1), or 1 without `max_norm`, of the dtype of `norm`; with
/// `skip_nonfinite` NaN where the norm is not finite. `norm` and `max_norm` are 0-d.
MLX_OPT_API GradientScale gradient_scale(
    const mx::array& norm,
    const std::optional<mx::array>& max_norm,
    bool skip_nonfinite,
    mx::StreamOrDevice s = {});

/// The same of a number.
///
/// Throws std::invalid_argument if `max_norm` is negative.
MLX_OPT_API GradientScale
gradient_scale(const mx::array& norm, const Clip& clip, mx::StreamOrDevice s = {});

/// Queues a scale on its GPU where the gradients that it is made of are evaluated, so that the GPU
/// reads them while the host makes the step ready.
MLX_OPT_API void begin_scale(const mx::array& scale);

} // namespace mlx_opt
