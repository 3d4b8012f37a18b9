// Where the scalars of a step come from.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mlx_opt/rule.h"

namespace mlx_opt {

/// What the gradients are multiplied with, in float32, before the rule sees them.
enum class Scaling : uint8_t {
  none,
  always,    // the last input, a float32
  if_finite, // the same; where it is not finite the step is not taken, and all stays as it was
};

/// A rule, its constant hyperparameters in its order, and the positions of those that are read when
/// the step runs instead.
struct Schedule {
  Rule rule;
  std::vector<double> hypers;
  std::vector<int> traced;
  Scaling scaling = Scaling::none;
};

/// A hyperparameter as the rules take it.
inline MLX_OPT_LEVEL::Hyper derived(double x) {
  return {float(x), float(1.0 - x), float(std::log(x))};
}

} // namespace mlx_opt
