// The numbers that a rule keeps from step to step, in the root of an optimizer's state.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "mlx/utils.h"
#include "mlx_opt/step/descriptions.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The description of the number that a rule keeps, its last hyperparameter; null if it keeps none.
MLX_OPT_API const HyperInfo* kept_by(Rule rule);

/// The names of the hyperparameters on which that number depends.
MLX_OPT_API std::vector<std::string_view> kept_inputs(Rule rule);

/// The number's value in step `step`, 0-d; `hypers` holds its previous value. Evaluated if the
/// device is the CPU and all inputs are evaluated, else lazy. None if the rule keeps none.
MLX_OPT_API std::optional<mx::array> next_kept(
    Rule rule, const std::vector<Scalar>& hypers, const mx::array& step, mx::StreamOrDevice s = {});

} // namespace mlx_opt
