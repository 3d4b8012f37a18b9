// Which parameters of an optimizer have which hyperparameters.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mlx_opt/api/definition.h"
#include "mlx_opt/types/group.h"

namespace mlx_opt {

/// What the groups that match a parameter set together.
struct Combination {
  Definition definition;
  std::optional<float> learning_rate; // if not the optimizer's
  float rate_scale = 1.0f;
  bool frozen = false;
  /// The key of the numbers that the rule keeps for these parameters: the names of the groups that
  /// change them. Empty if they have the optimizer's own.
  std::string kept_key = "";
  std::vector<int> split = {}; // see Group
};

/// The combinations of an optimizer's parameters, the one without groups first.
struct Assignment {
  std::vector<Combination> combinations;
  std::map<std::string, size_t> of_names;
};

/// Throws std::invalid_argument if a pattern matches none of the names, or a group has a value that
/// the optimizer cannot have.
Assignment assign(
    const std::vector<std::string>& names,
    const Hyperparameters& hypers,
    const std::vector<Group>& groups,
    const Options& options);

} // namespace mlx_opt
