// Chooses the buffers that a step's outputs are written to.
#pragma once

#include <functional>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The buffers that StepPrimitive passes to the StepOutputs, one for each output.
struct OutputBuffers {
  std::vector<Data> buffers;

  Buffers written() const;
};

/// Waits for `stream` if that frees enough buffers for donation. MLX holds what a queued task reads
/// (the forward pass's parameters, and every array given to async_eval) until the task is done.
/// Waiting is safe if every stream is a CPU stream, because everything that this stream waits for
/// is queued.
void wait_for_donatable_buffers(
    mx::Stream stream, const std::vector<mx::array>& inputs, const std::vector<TensorRun>& runs);

/// Assigns a buffer to each output of the tensors of `runs` (inputs: parameter, slots, gradient). A
/// parameter or slot that nobody else holds donates its buffer to its successor; the successor of a
/// held parameter gets the gradient's buffer; otherwise `allocate` makes a new one of the given
/// bytes. A donated buffer is moved out of its array: MLX holds the array's data until the task is
/// done, and the next step could not donate a held buffer again.
OutputBuffers assign_output_buffers(
    const std::vector<mx::array>& inputs,
    const std::vector<TensorRun>& runs,
    const std::vector<mx::Dtype>& dtypes,
    const std::function<Data(size_t)>& allocate);

} // namespace mlx_opt
