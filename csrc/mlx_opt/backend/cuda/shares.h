// The tensors of a step, grouped by the kernel that updates them.
#pragma once

#include <functional>
#include <vector>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/kernel.h"
#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/cuda/records.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt::cuda {

using AnyLayout = Layout<max_operands>;

/// The index of a tensor in the step, of its first operand among the inputs, and of its first
/// result among the outputs; how its master weight is kept; the number of operands that are scales.
struct Position {
  size_t tensor, input, output;
  MasterWeights masters;
  int scales;
};

/// Calls `visit` for each tensor of a step that has elements. Throws std::runtime_error if a tensor
/// has more operands than the kernels support.
void for_each_tensor(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::function<void(Position position, int operands, const Extent& extent)>& visit);

/// The number of blocks that a launch has for a tensor.
unsigned chunks_of(Walk walk, const Extent& tensor);

/// The tensors that one kernel updates.
struct Share {
  explicit Share(const UpdateKernel& kernel)
      : kernel(kernel), records(kernel.inputs(), kernel.outputs()) {}

  /// The maximum number of tensors of a launch.
  size_t capacity() const {
    return kernel.walk == Walk::strided ? 1 : kernel.capacity;
  }

  UpdateKernel kernel;
  Records records;
  std::vector<AnyLayout> layouts; // of each tensor, if the walk is strided
  std::vector<size_t> tensors;    // each tensor's index in the step
  CUfunction function = nullptr;
};

class Shares {
 public:
  /// Adds a tensor to the share of a kernel, and returns the share.
  Share& add(const UpdateKernel& kernel, size_t tensor, const Extent& extent);

  /// Chooses the sizes of the tables and finds the kernels.
  void find_functions(const mx::cu::Device& device);

  std::vector<Share>& all() {
    return all_;
  }

 private:
  std::vector<Share> all_;
};

/// Adds a tensor, whose last operand is its gradient, to the share of a kernel, whose walk is
/// chosen here; returns the share. `operands`: those of kernel.in.
Share& add_with_gradient(
    Shares& shares,
    UpdateKernel kernel,
    size_t tensor,
    Extent extent,
    const mx::array* const* operands);

} // namespace mlx_opt::cuda
