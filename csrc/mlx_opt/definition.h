// What an optimizer of the C++ interface is made of.
#pragma once

#include <string_view>
#include <vector>

#include "mlx_opt/hyperparameters.h"
#include "mlx_opt/ops.h"

namespace mlx_opt {

struct Definition {
  Rule rule;
  /// Names of the state's arrays; the rule uses the first of them, as many as it has moments.
  std::vector<std::string_view> state;
  std::vector<Scalar> hypers; // in the rule's order
};

/// Throws std::invalid_argument for a hyperparameter out of its range.
Definition definition(const Hyperparameters& hypers);

} // namespace mlx_opt
