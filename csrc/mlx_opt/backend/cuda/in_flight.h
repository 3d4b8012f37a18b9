// How far the host may run ahead of the GPU.
#pragma once

#include "mlx/backend/cuda/device.h"
#include "mlx/stream.h"

namespace mlx_opt::cuda {

/// A step that finds its buffers held takes new ones, and MLX holds those of a queued step until it
/// is done. So a loop that never waits would fill the memory with steps: a step waits for the last
/// but one of its stream, which leaves the GPU one to run.
void wait_for_last_but_one(mlx::core::Stream stream);

/// Notes that a step has been committed to the encoder's stream.
void note_step(mlx::core::Stream stream, mlx::core::cu::CommandEncoder& encoder);

} // namespace mlx_opt::cuda
