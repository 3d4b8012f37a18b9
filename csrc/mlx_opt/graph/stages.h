// The order in which a backward pass ends the gradients of a step.
#pragma once

#include <compare>
#include <cstddef>
#include <vector>

#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The gradients of a stage have at least as many bytes.
inline constexpr size_t default_stage_bytes = size_t{32} << 20;

/// The current limit. Tests change it.
MLX_OPT_API size_t stage_bytes();
MLX_OPT_API void set_stage_bytes(size_t bytes);

/// A leaf's kind, and its place among the leaves of that kind.
struct LeafPlace {
  size_t kind, index;

  auto operator<=>(const LeafPlace&) const = default;
};

using Stages = std::vector<std::vector<LeafPlace>>;

/// Divides leaves with lazy gradients into stages, each of which can be updated, and its gradients
/// freed, before the gradients of the next are computed. None if there is nothing to gain.
Stages stages_of(const Leaves& leaves);

/// `x`, once `before` is computed. As mx::depends, but vmap goes through it, which leaves the order
/// out.
mx::array after(const mx::array& x, const mx::array& before, mx::Stream stream);

} // namespace mlx_opt
