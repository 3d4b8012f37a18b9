// Steps on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// Prepares a step over `inputs`, which are those of StepSpec. `dtypes`: of the outputs.
std::unique_ptr<Prepared> prepare(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode);

} // namespace mlx_opt::cpu
