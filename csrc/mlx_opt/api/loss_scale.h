// The dynamic scale of a loss whose gradients are float16, as in Python's loss_scale.py.
#pragma once

#include "mlx/utils.h"
#include "mlx_opt/types/named_arrays.h"

namespace mlx_opt {

/// A scale before its first step. Throws std::invalid_argument if it is not from 2^-24 to 2^24.
LossScale first_loss_scale(double value);

/// The scale after a step. `finite`: true if the step was applied.
LossScale after_step(const LossScale& before, const mx::array& finite, mx::StreamOrDevice s);

} // namespace mlx_opt
