// A step of Adafactor on an NVIDIA GPU.
#pragma once

#include "mlx_opt/backend/backend.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

std::unique_ptr<Prepared> prepare_adafactor_step(
    const mlx_opt::ScalarSources& sources,
    const Factoring& factoring,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream);

} // namespace mlx_opt::cuda
