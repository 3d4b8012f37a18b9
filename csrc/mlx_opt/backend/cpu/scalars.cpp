#include "mlx_opt/backend/cpu/scalars.h"

#include <cmath>

namespace mlx_opt::cpu {

GroupScalars::GroupScalars(const GroupSources& sources, const GroupInputs& inputs)
    : sources_(sources) {
  if (inputs.step) {
    step_ = inputs.step->data<uint64_t>();
  }
  if (inputs.learning_rate) {
    learning_rate_ = inputs.learning_rate->data<float>();
  }
  for (const mx::array* x : inputs.traced) {
    traced_.push_back(x->data<float>());
  }
}

std::vector<MLX_OPT_LEVEL::Hyper> GroupScalars::hypers() const {
  std::vector<MLX_OPT_LEVEL::Hyper> hypers;
  for (double x : sources_.hypers) {
    hypers.push_back(make_hyper(x));
  }
  for (size_t i = 0; i < traced_.size(); ++i) {
    hypers[sources_.traced[i]] = make_hyper(*traced_[i]);
  }
  return hypers;
}

StepScalars::StepScalars(const StepSpec& spec, const mx::array* const* inputs)
    : scaling_(spec.scaling) {
  const ScalarInputs arrays(spec, inputs);
  for (size_t g = 0; g < spec.sources.size(); ++g) {
    groups_.emplace_back(spec.sources[g], arrays.groups[g]);
  }
  if (arrays.scale) {
    scale_ = arrays.scale->data<float>();
  }
  if (arrays.max_value) {
    max_value_ = arrays.max_value->data<float>();
  }
}

bool StepScalars::is_applied() const {
  return scaling_ != Scaling::if_finite || std::isfinite(*scale_);
}

} // namespace mlx_opt::cpu
