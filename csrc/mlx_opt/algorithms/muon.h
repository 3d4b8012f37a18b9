// A step of Muon, of primitives and MLX's matrix products.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

/// `operands`: for each tensor its parameter, v and its gradient. Returns for each the new
/// parameter and the new v. The rest is as of `step`.
std::vector<mx::array> muon(
    std::vector<mx::array> operands,
    const Muon& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream);

} // namespace mlx_opt
