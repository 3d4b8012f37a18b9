// Where the scalars of a step come from.
#pragma once

#include <cmath>
#include <vector>

#include "mlx_opt/rule.h"

namespace mlx_opt {

/// A rule, its constant hyperparameters in its order, and the positions of those that are read when
/// the step runs instead.
struct Schedule {
  Rule rule;
  std::vector<double> hypers;
  std::vector<int> traced;
};

/// A hyperparameter as the rules take it.
inline MLX_OPT_LEVEL::Hyper derived(double x) {
  return {float(x), float(1.0 - x), float(std::log(x))};
}

} // namespace mlx_opt
