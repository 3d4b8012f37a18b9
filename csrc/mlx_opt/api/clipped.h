// What a step of the C++ optimizer does with its gradients.
#pragma once

#include <optional>

#include "mlx/utils.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"

namespace mlx_opt {

struct Clipped {
  std::optional<GradientScale> scale; // none if the gradients are taken as they are
  std::optional<mx::array> norm;      // of all gradients, before clipping; none if it is not needed
  std::optional<mx::array> finite;    // true if the step is applied; none if it always is
};

/// `divisor`: what the gradients are divided by before all else, 0-d. Throws std::invalid_argument
/// for a limit that is negative.
Clipped clipped(
    const Clip& clip,
    const Arrays& gradients,
    const std::optional<mx::array>& divisor,
    mx::StreamOrDevice s);

} // namespace mlx_opt
