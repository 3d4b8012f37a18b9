// Muon's step: momentum by a primitive, MLX's matrix products, and descent by a primitive.
#pragma once

#include "mlx_opt/algorithms/newton_schulz.h"
#include "mlx_opt/step/program.h"
#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

/// `stack`: see `orthogonalized`. `formats`: see Program. Throws std::invalid_argument with the
/// option's name if an option is out of range.
MLX_OPT_API Program muon_program(
    const Muon& options,
    size_t stack = stack_elements,
    const std::optional<Formats>& formats = std::nullopt);

} // namespace mlx_opt
