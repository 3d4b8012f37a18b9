// Clipping by the global norm, and steps that are skipped where it is not finite.
#pragma once

#include <optional>

#include "mlx/array.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// What a step does with gradients that are too long, or not finite: Pascanu, Mikolov and Bengio,
/// ICML 2013, arXiv:1211.5063.
struct Clip {
  /// The maximum global norm of the gradients, in their units; 0 or more. Larger gradients are
  /// scaled down to it.
  std::optional<double> max_norm = std::nullopt;
  /// The maximum size of an element of a gradient, after the scale for max_norm; 0 or more. Larger
  /// ones are replaced by it, with their sign.
  std::optional<double> max_value = std::nullopt;
  /// True if a step is skipped where the norm is infinite or NaN.
  bool skip_nonfinite = false;
};

/// The factor by which each gradient is multiplied, in float32, before the rule sees it: a 0-d
/// array. With `skip_nonfinite`, a value that is not finite skips the step: the results equal the
/// operands. Each element is then clipped to at most `max_value` from 0, a 0-d array.
struct GradientScale {
  mx::array value;
  bool skip_nonfinite = false;
  std::optional<mx::array> max_value = std::nullopt;
};

} // namespace mlx_opt
