// A step on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx_opt/schedule.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// A step in two moves, because placing the outputs takes the buffers away from the inputs: first
/// note where the inputs lie, then queue the work.
class Step {
 public:
  /// `inputs`: as Update has them; `dtypes`: of the outputs.
  Step(
      Schedule schedule,
      const std::vector<mx::array>& inputs,
      const std::vector<mx::Dtype>& dtypes);

  /// Queues the step on `stream`, writing to `outputs`. `keep` stays alive until it is done.
  void enqueue(
      mx::Stream stream,
      const std::vector<mx::allocator::Buffer>& outputs,
      std::shared_ptr<void> keep);

 private:
  struct Work;
  std::shared_ptr<Work> work_;
};

} // namespace mlx_opt::cpu
