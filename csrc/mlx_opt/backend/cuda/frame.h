// The scalars of a step on the device.
#pragma once

#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/step/scalars.h"

namespace mlx_opt::cuda {

/// Memory for a rule's scalars.
mx::array new_frame(mx::Stream stream);

/// Queues `prepare`, which fills `frame`; the caller keeps that until the step is done. `scalars`:
/// the step, the learning rate, the traced hyperparameters and the gradients' scale.
void launch_prepare(
    mx::cu::CommandEncoder& encoder,
    CUfunction prepare,
    const mlx_opt::ScalarSources& from,
    const mx::array* const* scalars,
    const mx::array& frame);

} // namespace mlx_opt::cuda
