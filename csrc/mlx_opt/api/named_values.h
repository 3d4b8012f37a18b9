// The optimizers' hyperparameters by their names.
#pragma once

#include <map>
#include <string>

#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

/// Hyperparameters and options by the names that the rules' descriptions give them.
using Values = std::map<std::string, double>;

/// An optimizer's name in the rules' descriptions, and its values.
struct NamedValues {
  std::string optimizer;
  Values values;
};

NamedValues named_values(const Hyperparameters& hypers);

} // namespace mlx_opt
