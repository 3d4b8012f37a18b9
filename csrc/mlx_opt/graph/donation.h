// Which buffers the outputs of a step are written to.
#pragma once

#include <functional>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The buffers between StepPrimitive and the StepOutputs, one an output.
struct OutputBuffers {
  std::vector<mx::array::Data> buffers;

  Buffers written() const;
};

/// Waits for `stream` where that frees buffers worth having. MLX keeps what a queued task reads,
/// the forward pass's parameters and all that async_eval was given, until the task is done. Waiting
/// is safe where every stream is a CPU stream: all that this one waits for is queued.
void wait_for_donatable_buffers(
    mx::Stream stream, const std::vector<mx::array>& inputs, const std::vector<TensorRun>& runs);

/// For each tensor of `runs` (its inputs: parameter, slots, gradient) the buffers of its outputs:
/// the parameter's and the slots' own where nobody else holds them; for a parameter that is held,
/// the gradient's; else a new one from `allocate`, which is given the bytes. A buffer taken is
/// moved out of its array: MLX keeps what the array holds until the task is done, and a held buffer
/// could not be taken again by the next step.
OutputBuffers assign_output_buffers(
    const std::vector<mx::array>& inputs,
    const std::vector<TensorRun>& runs,
    const std::vector<mx::Dtype>& dtypes,
    const std::function<mx::array::Data(size_t)>& allocate);

} // namespace mlx_opt
