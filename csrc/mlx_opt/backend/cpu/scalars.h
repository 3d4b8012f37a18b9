// The scalars of a step, as its task reads them.
#pragma once

#include <limits>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// The scalars of a group of tensors.
class GroupScalars {
 public:
  GroupScalars(const GroupSources& sources, const GroupInputs& inputs);

  std::vector<MLX_OPT_LEVEL::Hyper> hypers() const;

  /// 0 if the group does not read it. The same holds for the learning rate.
  float step() const {
    return step_ ? static_cast<float>(*step_) : 0.0f;
  }

  float learning_rate() const {
    return learning_rate_ ? sources_.rate_scale * *learning_rate_ : 0.0f;
  }

 private:
  GroupSources sources_;
  const uint64_t* step_ = nullptr;
  const float* learning_rate_ = nullptr;
  std::vector<const float*> traced_;
};

/// The addresses of the scalars of all groups. Their values are read when the task runs.
class StepScalars {
 public:
  /// `inputs`: the inputs of the primitive after the operands.
  StepScalars(const StepSpec& spec, const mx::array* const* inputs);

  const std::vector<GroupScalars>& groups() const {
    return groups_;
  }

  /// What is done with the gradients; nothing if they are not scaled.
  Scale scale() const {
    constexpr float any = std::numeric_limits<float>::infinity();
    return {scale_ ? *scale_ : 1.0f, max_value_ ? *max_value_ : any};
  }

  /// False if the step is skipped.
  bool is_applied() const;

 private:
  std::vector<GroupScalars> groups_;
  Scaling scaling_;
  const float* scale_ = nullptr;
  const float* max_value_ = nullptr;
};

} // namespace mlx_opt::cpu
