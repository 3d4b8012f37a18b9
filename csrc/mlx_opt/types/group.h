// Groups of parameters with hyperparameters of their own.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mlx_opt/types/options.h"

namespace mlx_opt {

/// Parameters of an Optimizer that have hyperparameters of their own:
///
///   Group{.match = {"*.bias", "*norm*"}, .hypers = {{"weight_decay", 0.0}}}
///
/// If several groups match a parameter, each value comes from the first of them that has it.
struct Group {
  /// Patterns of the parameters' names as fnmatch(3) has them, with no character to escape others.
  std::vector<std::string> match;
  /// Hyperparameters by the names that docs/rules gives them: {"betas[1]", 0.95}.
  std::map<std::string, double> hypers = {};
  std::optional<double> learning_rate_scale = std::nullopt; // multiplies the learning rate
  std::optional<double> learning_rate = std::nullopt;
  /// For Muon, the numbers of rows of the blocks, one below the other, that a matrix consists of,
  /// such as those of queries, keys and values: {512, 128, 128}. One number is that of blocks of
  /// equal size: {12}. Each block has an orthogonal factor of its own; one that is a single row of
  /// more than two dimensions is a matrix of the others. Empty: the matrix is not split.
  std::vector<int> split = {};
  /// In the place of the optimizer's, all of them.
  std::optional<Options> options = std::nullopt;
  /// True if the parameters are not updated, have no state and do not count in the norm.
  bool frozen = false;
  /// True if a pattern may match no parameter.
  bool may_match_nothing = false;
  /// The key of the group's entries in a state: letters first, and no dots. A group needs one whose
  /// hyperparameters change a number that the rule keeps, as NAdam's betas[0] does mu_product.
  std::string name = "";
};

} // namespace mlx_opt
