// The average of the weights in MLX's operations, for programs whose kernels do not have it.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx_opt/graph/masters.h"

namespace mlx_opt {

/// The results of `step` without averages, and the averages of its weights; in the order of the
/// leaves. A parameter keeps its dtype.
std::vector<mx::array> step_with_ema(const Request& request, const Leaves& leaves, Step& step);

} // namespace mlx_opt
