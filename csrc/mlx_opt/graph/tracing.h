// Whether arrays are traced, or ready to be read.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// Whether any of `arrays` is being traced by a gradient transformation (vjp, jvp), which the
/// primitives do not take part in.
MLX_OPT_API bool traced_for_gradient(const std::vector<mx::array>& arrays);

/// Whether work that is queued on `stream` may read `x` without waiting.
bool is_at_hand(const mx::array& x, mx::Stream stream);

} // namespace mlx_opt
