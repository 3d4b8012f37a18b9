// Master weights in MLX's operations, for programs whose kernels do not have them.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The weight of a parameter in float32, of its master or remainder.
MLX_OPT_API mx::array weight_of(
    const mx::array& parameter, const mx::array& master, mx::Stream stream);

using Step = std::vector<mx::array>(const Request& request, const Leaves& leaves);

/// The results of `step` on the master weights in the place of their parameters, which become their
/// rounding; in the order of the leaves.
std::vector<mx::array> step_on_masters(const Request& request, const Leaves& leaves, Step& step);

} // namespace mlx_opt
