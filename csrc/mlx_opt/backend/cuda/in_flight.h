// How far the host may run ahead of the GPU.
#pragma once

#include "mlx/backend/cuda/device.h"
#include "mlx/stream.h"

namespace mlx_opt::cuda {

/// Waits until the GPU has done the last but one step of the stream; why: gpu::InFlight.
void wait_for_last_but_one(mlx::core::Stream stream);

/// Notes that a step has been committed to the encoder's stream.
void note_step(mlx::core::Stream stream, mlx::core::cu::CommandEncoder& encoder);

} // namespace mlx_opt::cuda
