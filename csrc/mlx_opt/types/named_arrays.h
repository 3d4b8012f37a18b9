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

} // namespace mlx_opt
