// What a step is asked for, checked, as the primitives take it.
#pragma once

#include <vector>

#include "mlx_opt/ops.h"
#include "mlx_opt/schedule.h"

namespace mlx_opt {

/// Throws std::invalid_argument where the operands or the number of hyperparameters do not fit the
/// rule. `operands`: pointers to arrays, for each tensor as `step` has them.
void check_arguments(
    Rule rule, const std::vector<const mx::array*>& operands, const std::vector<Scalar>& hypers);

/// The dtypes of the new parameters and moments, as stock's formulas promote them.
std::vector<mx::Dtype> result_dtypes(
    Rule rule, const std::vector<const mx::array*>& operands, const std::vector<Scalar>& hypers);

/// The schedule of a step. Appends the scalars that it reads to `scalars`: the step (uint64), the
/// learning rate, the traced hyperparameters and the gradients' scale if there is one (float32).
Schedule make_schedule(
    Rule rule,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream,
    std::vector<mx::array>& scalars);

} // namespace mlx_opt
