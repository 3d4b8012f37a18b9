// The numbers that a rule keeps from step to step, in the root of an optimizer's state.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "mlx/utils.h"
#include "mlx_opt/step/descriptions.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The descriptions of the numbers that a rule keeps, its last hyperparameters.
MLX_OPT_API std::span<const HyperInfo> kept_by(Rule rule);

/// The names of the hyperparameters on which these numbers depend.
MLX_OPT_API std::vector<std::string_view> kept_inputs(Rule rule);

/// The numbers' values in step `step`, 0-d and float32, in the same order; `hypers` ends with their
/// previous values. Evaluated if the device is the CPU and all inputs are evaluated, else lazy.
/// `sums`: of a rule that sums over all tensors, these sums, each 0-d and float32.
MLX_OPT_API Arrays next_kept(
    Rule rule,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const Arrays& sums = {},
    mx::StreamOrDevice s = {});

} // namespace mlx_opt
