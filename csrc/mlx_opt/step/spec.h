// What an optimizer of the C++ interface is made of.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

struct Definition {
  /// None for Adafactor and Muon, which are no elementwise rules.
  std::optional<Rule> rule;
  /// Names of a parameter's arrays; a rule uses the first of them, as many as it has moments.
  std::vector<std::string_view> state;
  std::vector<Scalar> hypers; // in the rule's order
  /// Unless empty, the names where a parameter has two dimensions or more: see state_shape.
  std::vector<std::string_view> factored_state = {};
  bool uses_learning_rate = true;
  std::optional<Muon> muon = {};

  bool factors(size_t ndim) const {
    return !factored_state.empty() && ndim >= 2;
  }

  const std::vector<std::string_view>& names(size_t ndim) const {
    return factors(ndim) ? factored_state : state;
  }
};

/// Throws std::invalid_argument for a hyperparameter out of its range.
Definition definition(const Hyperparameters& hypers);

} // namespace mlx_opt
