// The global norm of gradients.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The square root of the sum of the squares of all elements of all arrays, which are float32,
/// float16 or bfloat16. Returns a 0-d float32. The sum is taken in one pass, in an order that does
/// not depend on the number of threads, and in double precision, with Metal in two floats. On a GPU
/// without a backend MLX's own operations compute it in float32.
///
/// Throws std::invalid_argument for another dtype.
MLX_OPT_API mx::array global_norm(const std::vector<mx::array>& arrays, mx::StreamOrDevice s = {});

} // namespace mlx_opt
