// The rule and the hyperparameters of an optimizer of the C++ interface.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/hyperparameters.h"
#include "mlx_opt/types/options.h"

namespace mlx_opt {

struct Definition {
  Program program;
  std::vector<Scalar> hypers; // in the rule's order
  bool uses_learning_rate;
  Ema ema = {};          // if the program has an average
  bool maximize = false; // if true, the step ascends: it takes the negative of the gradients
};

/// `values` replace hyperparameters by name. Throws std::invalid_argument for a hyperparameter that
/// is unknown or out of its range, for an unknown slot or a dtype that no slot can have, and for
/// options that do not go together.
MLX_OPT_API Definition definition(
    const Hyperparameters& hypers,
    const std::map<std::string, double>& values = {},
    const Options& options = {});

std::vector<std::string_view> state_names(const Slots& slots);

} // namespace mlx_opt
