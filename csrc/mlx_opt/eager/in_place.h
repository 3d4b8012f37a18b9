// A step that runs at once and overwrites its operands. A graph takes longer to build and to walk
// than a small model's step takes to run; where nobody can tell the difference there is none.
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

/// Waits until `stream` takes another step without having too many before it. May be called without
/// Python's lock; step_in_place then does not wait.
MLX_OPT_API void wait_for_turn(mx::Stream stream);

/// Queues one step of `rule` that overwrites the parameters and moments among `operands`, which
/// are as `step` has them.
///
/// It does so if all operands are evaluated, on a GPU at least queued on the stream, and each
/// parameter and moment is row-contiguous, keeps its dtype, and is held by its pointer alone: the
/// array by no copy, its buffer by no other array, nor by a queued task but the stream's last step.
/// Otherwise it changes nothing and returns false, and `step` serves.
///
/// Where the caller seems to wait for each step, `step` may be left as an equal array that is still
/// to be evaluated: MLX then waits for all together, and not for each.
///
/// Throws std::invalid_argument where the arguments do not fit the rule and it would run.
MLX_OPT_API bool step_in_place(
    Rule rule,
    const std::vector<mx::array*>& operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

/// The same of a step of Adafactor, whose operands are as `adafactor` has them.
MLX_OPT_API bool adafactor_in_place(
    const std::vector<mx::array*>& operands,
    size_t unfactored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

/// Waits for the stream if its last step left an array to be evaluated and the caller has gone on
/// without waiting: MLX may hold the step's results until then. Returns whether it did. May be
/// called without Python's lock.
MLX_OPT_API bool wait_for_holder(mx::Stream stream);

} // namespace mlx_opt
