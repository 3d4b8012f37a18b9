// The sums of a rule over all tensors on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// Computes the sums of each group. They are taken in one order, whatever the number of threads.
class SumsTask {
 public:
  /// `inputs`: of each tensor what the sums read, its gradient last, in the order of `spec.groups`;
  /// then the scalars as in StepSpec.
  SumsTask(const StepSpec& spec, const ArrayRefs& inputs);

  /// Writes the sums of the first group, then those of the next.
  void run(float* results) const;

 private:
  struct Data;
  std::shared_ptr<const Data> data_;
};

void enqueue_sums(mx::Stream stream, SumsTask task, float* results);

} // namespace mlx_opt::cpu
