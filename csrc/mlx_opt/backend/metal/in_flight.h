// How many steps the GPU has before it.
#pragma once

#include "mlx/backend/metal/device.h"

namespace mlx_opt::metal {

/// Waits until the GPU has done the last but one step of the stream, if that is on its way.
void wait_for_last_but_one(mlx::core::Stream stream);

/// Says that a step of the stream is among `commands`.
void note_step(mlx::core::Stream stream, MTL::CommandBuffer* commands);

} // namespace mlx_opt::metal
