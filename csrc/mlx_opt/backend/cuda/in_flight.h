// Limits how far the host runs ahead of the GPU.
#pragma once

#include "mlx/backend/cuda/device.h"
#include "mlx/stream.h"

namespace mlx_opt::cuda {

/// Waits until the GPU has finished the last but one step of the stream; see gpu::InFlight for the
/// reason.
void wait_for_last_but_one(mlx::core::Stream stream);

/// Records that a step was committed to the encoder's stream.
void note_step(mlx::core::Stream stream, mlx::core::cu::CommandEncoder& encoder);

} // namespace mlx_opt::cuda
