// What a step is asked for, checked, as the primitives take it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
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

/// Appends to `scalars` those that are read when the step runs: the step (uint64), the learning
/// rate, the traced hyperparameters and the gradients' scale if there is one (float32).
ScalarSources push_scalars(
    std::string_view rule,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream,
    std::vector<mx::array>& scalars);

/// Throws std::invalid_argument that names the rule.
[[noreturn]] void refuse(std::string_view rule, const std::string& what);

} // namespace mlx_opt
