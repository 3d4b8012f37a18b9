// The scalars of a step as inputs of its primitive.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mlx_opt/ops.h"
#include "mlx_opt/schedule.h"

namespace mlx_opt {

/// Throws std::invalid_argument that names the rule.
[[noreturn]] void refuse(std::string_view rule, const std::string& what);

/// Appends to `inputs` the scalars that are read when the step runs.
ScalarSources push_scalars(
    std::string_view rule,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream,
    std::vector<mx::array>& inputs);

} // namespace mlx_opt
