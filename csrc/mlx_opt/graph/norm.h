// The global norm of gradients.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The square root of the sum of the squares of all elements of all arrays, each of float32,
/// float16 or bfloat16: 0-d, float32. Summed in one pass and in an order that does not depend on
/// the number of threads, in double precision or with Metal in two floats; on a GPU that the
/// library has no backend for, by MLX's own operations in float32.
///
/// Throws std::invalid_argument for another dtype.
MLX_OPT_API mx::array global_norm(const std::vector<mx::array>& arrays, mx::StreamOrDevice s = {});

} // namespace mlx_opt
