// The Metal implementation of gpu::Backend.
#pragma once

#include "mlx_opt/backend/backend.h"

namespace mlx_opt::metal {

const gpu::Backend& backend();

} // namespace mlx_opt::metal
