// Limits how many steps the GPU has queued.
#pragma once

#include <memory>

#include "mlx/backend/metal/device.h"

namespace mlx_opt::metal {

/// Waits until the GPU has finished the last but one step of the stream, if that was committed.
void wait_for_last_but_one(mlx::core::Stream stream);

/// Ends a step of the stream that is encoded: releases `keep_alive` when the GPU has finished it.
void end_step(
    mlx::core::Stream stream,
    mlx::core::metal::CommandEncoder& encoder,
    std::shared_ptr<void> keep_alive);

} // namespace mlx_opt::metal
