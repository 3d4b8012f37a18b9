// A step of Adafactor on an Apple GPU.
#pragma once

#include "mlx_opt/backend/backend.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// The runs of `spec` are the tensors that are not factored, then those that are.
std::unique_ptr<Prepared> prepare_adafactor_step(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream);

} // namespace mlx_opt::metal
