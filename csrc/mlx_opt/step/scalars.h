// Where the scalars of a step come from.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mlx_opt/rules/registry.h"

namespace mlx_opt {

/// What the gradients are multiplied with, in float32, before the rule sees them.
enum class Scaling : uint8_t {
  none,
  always,    // the last input, a float32
  if_finite, // the same; where it is not finite the step is not taken, and all stays as it was
};

/// The constant hyperparameters in a rule's order, the positions of those that are read when the
/// step runs instead, and the scaling. Those that are read are inputs, behind the operands: the
/// step (uint64), the learning rate, the traced hyperparameters and, unless the scaling is none,
/// the scale (float32), all 0-d.
struct ScalarSources {
  std::vector<double> hypers;
  std::vector<int> traced;
  Scaling scaling = Scaling::none;
};

struct Schedule : ScalarSources {
  Rule rule;
};

/// The tensors of a step of Adafactor: first those with a running mean for each element, then those
/// with running means of their rows and of their columns.
struct Factoring {
  size_t unfactored;
  size_t factored;
  bool first_moment;

  /// Of a tensor: the parameter; the means; the first moment, if there is one; the gradient.
  int operands(bool is_factored) const {
    return 3 + is_factored + first_moment;
  }
};

/// A hyperparameter as the rules take it.
inline MLX_OPT_LEVEL::Hyper derived(double x) {
  return {float(x), float(1.0 - x), float(std::log(x))};
}

} // namespace mlx_opt
