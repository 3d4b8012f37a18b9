// A step of a rule of two passes over each tensor, on an Apple GPU.
#pragma once

#include "mlx_opt/backend/backend.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

std::unique_ptr<Prepared> prepare_two_passes(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream);

} // namespace mlx_opt::metal
