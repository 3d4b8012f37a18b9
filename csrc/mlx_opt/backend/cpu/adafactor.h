// A step of Adafactor on the CPU.
#pragma once

#include "mlx_opt/schedule.h"
#include "mlx_opt/update.h"

namespace mlx_opt::cpu {

/// In two moves, as cpu::Step.
class AdafactorStep {
 public:
  /// `inputs`: as the primitive has them; `dtypes`: of the outputs.
  AdafactorStep(
      ScalarSources sources,
      const Factoring& factoring,
      const std::vector<mx::array>& inputs,
      const std::vector<mx::Dtype>& dtypes);

  void enqueue(
      mx::Stream stream,
      const std::vector<mx::allocator::Buffer>& outputs,
      std::shared_ptr<void> keep);

 private:
  struct Work;
  std::shared_ptr<Work> work_;
};

} // namespace mlx_opt::cpu
