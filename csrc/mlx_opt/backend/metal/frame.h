// The scalars of a step, where the GPU finds them.
#pragma once

#include "mlx/backend/metal/device.h"
#include "mlx_opt/step/scalars.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// Dispatches `prepare`, the frame's one writer: what follows reads it behind one barrier, which
/// MLX inserts. `scalars`: those that the step reads when it runs, as ScalarSources has them.
mx::array encode_prepare(
    mx::metal::CommandEncoder& encoder,
    MTL::ComputePipelineState* prepare,
    const ScalarSources& sources,
    const std::vector<mx::array>& scalars);

} // namespace mlx_opt::metal
