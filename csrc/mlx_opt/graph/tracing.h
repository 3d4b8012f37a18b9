// Whether MLX traces an array, and whether it is ready to be read.
#pragma once

#include "mlx/array.h"
#include "mlx/stream.h"
#include "mlx_opt/types/export.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// True if a gradient transformation (vjp, jvp), which the primitives do not support, traces any of
/// `arrays`.
MLX_OPT_API bool traced_for_gradient(const ArrayRefs& arrays);

/// True if work that is queued on `stream` may read `x` without waiting.
MLX_OPT_API bool is_ready(const mx::array& x, mx::Stream stream);

/// True if every input within `depth` primitives of `x` is ready.
MLX_OPT_API bool inputs_are_ready(const mx::array& x, int depth, mx::Stream stream);

} // namespace mlx_opt
