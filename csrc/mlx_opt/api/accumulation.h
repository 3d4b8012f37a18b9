// Gradients that are added up before a step of the C++ optimizer.
#pragma once

#include "mlx/utils.h"
#include "mlx_opt/types/named_arrays.h"

namespace mlx_opt {

/// The gradients of a step.
struct Total {
  NamedArrays gradients;
  std::optional<mx::array> divisor; // what they are divided by, 0-d; none if they are as given
};

/// Adds gradients to those that are pending, which have the same shapes. Throws
/// std::invalid_argument if only some calls have a normalizer; nothing has changed then.
void add(
    PendingGradients& pending,
    NamedArrays gradients,
    std::optional<double> normalizer,
    mx::StreamOrDevice s);

/// Those that are pending with these added to them, lazy. Throws what `add` throws. `parameters`:
/// give the dtypes of those without a gradient here.
Total total_of(
    const PendingGradients& pending,
    NamedArrays gradients,
    const NamedArrays& parameters,
    std::optional<double> normalizer,
    mx::StreamOrDevice s);

/// Puts what is pending into a state, in the form that Python's has.
void write_state(const PendingGradients& pending, NamedArrays& state);

/// Takes what is pending out of a state. Throws std::invalid_argument, with its key, for what is
/// not of the form that `write_state` gives.
PendingGradients take_pending(NamedArrays& state);

} // namespace mlx_opt
