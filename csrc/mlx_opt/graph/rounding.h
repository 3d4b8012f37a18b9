// Stochastic rounding in MLX's operations, for programs whose kernels do not have it.
#pragma once

#include "mlx_opt/graph/masters.h"

namespace mlx_opt {

/// The results of `step` in float32, with those that are stored in bfloat16 rounded stochastically;
/// in the order of the leaves. Slots whose format is set are rounded to nearest by the step.
std::vector<mx::array> step_then_round(const Request& request, const Leaves& leaves, Step& step);

} // namespace mlx_opt
