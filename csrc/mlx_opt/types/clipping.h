// Clipping by the global norm, and steps that are not taken where it is not finite.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// What a step does with gradients that are too long, or not finite: Pascanu, Mikolov and Bengio,
/// ICML 2013, arXiv:1211.5063.
struct Clip {
  /// The greatest global norm of the gradients, in their units; 0 or more. What is above it is
  /// scaled down to it.
  std::optional<double> max_norm = std::nullopt;
  /// Whether a step is left out where the norm is infinite or NaN.
  bool skip_nonfinite = false;
};

/// What each gradient is multiplied with, in float32, before the rule sees it: a 0-d array. With
/// `skip_nonfinite` one that is not finite means that the step is not taken: the results are equal
/// to the operands.
struct GradientScale {
  mx::array value;
  bool skip_nonfinite = false;
};

/// The square root of the sum of the squares of all elements of all arrays, each of float32,
/// float16 or bfloat16: 0-d, float32. Summed in one pass and in an order that does not depend on
/// the number of threads, in double precision or with Metal in two floats; on a GPU that the
/// library has no backend for, by MLX's own operations in float32.
///
/// Throws std::invalid_argument for another dtype.
MLX_OPT_API mx::array global_norm(const std::vector<mx::array>& arrays, mx::StreamOrDevice s = {});

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

/// Queues a scale on its GPU where the gradients that it is made of are at hand, so that the GPU
/// reads them while the host makes the step ready.
MLX_OPT_API void begin_scale(const mx::array& scale);

} // namespace mlx_opt
