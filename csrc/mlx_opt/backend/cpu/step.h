// A step on the CPU.
#pragma once

#include "mlx_opt/schedule.h"
#include "mlx_opt/update.h"

namespace mlx_opt::cpu {

/// A step in two moves, because placing the outputs takes the buffers away from the inputs: first
/// note where the inputs lie, then queue the work.
class Step {
 public:
  /// `inputs`: as Update has them; `dtypes`: of the outputs.
  Step(
      Schedule schedule,
      const std::vector<mx::array>& inputs,
      const std::vector<mx::Dtype>& dtypes);

  /// Queues the step on `stream`, writing to the buffers of `outputs`. `keep` stays alive until it
  /// is done.
  void enqueue(mx::Stream stream, const Handoff& outputs, std::shared_ptr<void> keep);

 private:
  struct Work;
  std::shared_ptr<Work> work_;
};

} // namespace mlx_opt::cpu
