// A step over many tensors, as a lazy graph.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The new parameters and slots of all leaves, in the order of Leaves::order(). Their dtypes are
/// those that mlx.optimizers promotes to; arithmetic is in float32. An operand that nobody else
/// holds when the step runs donates its buffer to the result.
///
/// Throws as `check` does.
MLX_OPT_API std::vector<mx::array> successors(const Request& request, const Leaves& leaves);

/// One step of `program` over `operands`: the parameter, slots and gradient of each tensor, all of
/// a storage dtype, ordered by kind. `tensors`: the number of tensors of each kind. `hypers`: in
/// the rule's order. `learning_rate` and `step` (the number of this step, from 1): 0-d. Returns
/// each tensor's new parameter and new slots. If the program rounds stochastically, the number of
/// the tensor, from 0, takes the place of its path.
///
/// Throws std::invalid_argument if the arguments do not fit the rule.
MLX_OPT_API std::vector<mx::array> step(
    const Program& program,
    std::vector<mx::array> operands,
    const std::vector<size_t>& tensors,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

/// The same for a rule that does not distinguish kinds of parameters.
MLX_OPT_API std::vector<mx::array> step(
    Rule rule,
    std::vector<mx::array> operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

} // namespace mlx_opt
