// Arrays by name, as the C++ optimizer takes them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "mlx/array.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// Arrays by name. mlx.utils.tree_flatten makes such names: "layers.0.weight".
using NamedArrays = std::map<std::string, mx::array>;

/// Gradients that are added up before a step.
struct PendingGradients {
  std::uint64_t calls = 0;
  std::optional<mx::array> normalizer = std::nullopt; // the sum of those given, 0-d
  NamedArrays gradients = {};
};

/// The factor of a loss, and for how many steps in a row it has been that.
struct LossScale {
  mx::array value; // 0-d, float32
  mx::array steps; // 0-d, uint32
};

} // namespace mlx_opt
