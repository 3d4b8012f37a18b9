// A step of an elementwise rule on an NVIDIA GPU.
#pragma once

#include "mlx_opt/backend/backend.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

std::unique_ptr<Prepared> prepare_update(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode);

} // namespace mlx_opt::cuda
