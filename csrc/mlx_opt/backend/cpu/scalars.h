// The scalars of a step where a task reads them.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/scalars.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

class ScalarInputs {
 public:
  /// `inputs`: those of a primitive, of which the first is at `scalars`.
  ScalarInputs(ScalarSources sources, const mx::array* const* scalars);

  /// Those below are for the task.
  std::vector<MLX_OPT_LEVEL::Hyper> hypers() const;

  float step() const {
    return static_cast<float>(*step_);
  }

  float learning_rate() const {
    return *learning_rate_;
  }

  /// What the gradients are multiplied with; null if they are not.
  const float* scale() const {
    return scale_;
  }

  bool taken() const;

 private:
  ScalarSources sources_;
  const uint64_t* step_;
  const float* learning_rate_;
  std::vector<const float*> traced_;
  const float* scale_ = nullptr;
};

} // namespace mlx_opt::cpu
