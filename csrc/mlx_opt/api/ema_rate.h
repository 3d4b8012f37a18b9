// The rate of the average of an optimizer's weights.
#pragma once

#include <string_view>

#include "mlx/utils.h"
#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/options.h"

namespace mlx_opt {

/// Throws std::invalid_argument if a number of `ema` is out of its range. `optimizer`: whose.
void check(const Ema& ema, std::string_view optimizer);

/// 1 minus the decay in step `step`, 0-d; as in Python's ema.py. A number where it does not depend
/// on the step, else lazy.
Scalar ema_rate(const Ema& ema, const mx::array& step, mx::StreamOrDevice s);

} // namespace mlx_opt
