// A step of a rule over many tensors, as a lazy graph.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// One step of `rule`.
///
/// `operands`: for each tensor its parameter, its moments in the rule's order and its gradient, all
/// of one shape and each of a storage dtype. `hypers`: in the rule's order. `learning_rate` and
/// `step` (the number of this step, from 1): 0-d.
///
/// Returns for each tensor the new parameter and the new moments. Their dtypes are those that
/// mlx.optimizers promotes to; arithmetic is in float32. An operand that nobody else holds when the
/// step runs gives its buffer to the result.
///
/// Throws std::invalid_argument where the arguments do not fit the rule.
MLX_OPT_API std::vector<mx::array> step(
    Rule rule,
    std::vector<mx::array> operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

/// The shape of array `index` of a parameter's state: the parameter's, but where the state is
/// `factored` those of its rows' and its columns' means for the first two.
MLX_OPT_API mx::Shape state_shape(const mx::Shape& parameter, bool factored, size_t index);

} // namespace mlx_opt
