// The scalars of a step on the device: one set of uniforms for each group of tensors.
#pragma once

#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/gpu/uniforms_shape.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt::cuda {

using gpu::UniformsShape;

/// Allocates the uniforms of a step. Throws std::logic_error if the groups of `spec` do not fit its
/// runs, its sources or the rule.
mx::array new_group_uniforms(const UniformsShape& shape, const StepSpec& spec, mx::Stream stream);

/// Queues the kernels that fill `group_uniforms`, which the caller keeps alive until the step is
/// done. `scalars`: the inputs after the operands, as StepSpec has them.
void launch_prepare(
    mx::cu::CommandEncoder& encoder,
    const UniformsShape& shape,
    const StepSpec& spec,
    const mx::array* const* scalars,
    const mx::array& group_uniforms);

} // namespace mlx_opt::cuda
