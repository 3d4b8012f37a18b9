// Limits how many steps the GPU has queued.
#pragma once

#include "mlx/backend/metal/device.h"

namespace mlx_opt::metal {

/// Waits until the GPU has finished the last but one step of the stream, if that was committed.
void wait_for_last_but_one(mlx::core::Stream stream);

/// Records that a step of the stream is part of `commands`.
void note_step(mlx::core::Stream stream, MTL::CommandBuffer* commands);

} // namespace mlx_opt::metal
