#include "mlx_opt/backend/cpu/scalars.h"

#include <cmath>

namespace mlx_opt::cpu {

ScalarInputs::ScalarInputs(ScalarSources sources, const mx::array* const* scalars)
    : sources_(std::move(sources)) {
  step_ = (*scalars++)->data<uint64_t>();
  learning_rate_ = (*scalars++)->data<float>();
  for (size_t i = 0; i < sources_.traced.size(); ++i) {
    traced_.push_back((*scalars++)->data<float>());
  }
  if (sources_.scaling != Scaling::none) {
    scale_ = (*scalars)->data<float>();
  }
}

std::vector<MLX_OPT_LEVEL::Hyper> ScalarInputs::hypers() const {
  std::vector<MLX_OPT_LEVEL::Hyper> hypers;
  for (double x : sources_.hypers) {
    hypers.push_back(derived(x));
  }
  for (size_t i = 0; i < traced_.size(); ++i) {
    hypers[sources_.traced[i]] = derived(*traced_[i]);
  }
  return hypers;
}

bool ScalarInputs::taken() const {
  return sources_.scaling != Scaling::if_finite || std::isfinite(*scale_);
}

} // namespace mlx_opt::cpu
