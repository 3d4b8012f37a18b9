// The numbers that a rule keeps from step to step, in the root of an optimizer's state.
#pragma once

#include <optional>
#include <vector>

#include "mlx/utils.h"
#include "mlx_opt/step/descriptions.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The description of the number that a rule keeps; null if it keeps none. Its hyperparameters end
/// with it.
MLX_OPT_API const HyperInfo* kept_by(Rule rule);

/// What that number is in step number `step`, 0-d; `hypers` has what it was before. Lazy, but where
/// the CPU is the device and all that it is made of is evaluated: MLX has no operation to run then.
/// None if the rule keeps none.
MLX_OPT_API std::optional<mx::array> next_kept(
    Rule rule, const std::vector<Scalar>& hypers, const mx::array& step, mx::StreamOrDevice s = {});

} // namespace mlx_opt
