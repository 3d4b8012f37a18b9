#include "mlx_opt/scalars.h"

#include <stdexcept>

#include "mlx/ops.h"

namespace mlx_opt {

void refuse(std::string_view rule, const std::string& what) {
  throw std::invalid_argument("mlx_opt " + std::string(rule) + ": " + what);
}

ScalarSources push_scalars(
    std::string_view rule,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream,
    std::vector<mx::array>& inputs) {
  auto push = [&](const char* name, const mx::array& x, mx::Dtype dtype) {
    if (x.size() != 1) {
      refuse(rule, std::string(name) + " must be a scalar, got shape " + shape_text(x.shape()));
    }
    inputs.push_back(x.dtype() == dtype ? x : mx::astype(x, dtype, stream));
  };
  push("step", step, mx::uint64);
  push("learning_rate", learning_rate, mx::float32);
  ScalarSources sources;
  for (const Scalar& hyper : hypers) {
    if (auto* x = std::get_if<mx::array>(&hyper)) {
      sources.traced.push_back(static_cast<int>(sources.hypers.size()));
      push("hyperparameter", *x, mx::float32);
      sources.hypers.push_back(0.0);
    } else {
      sources.hypers.push_back(std::get<double>(hyper));
    }
  }
  if (scale) {
    sources.scaling = scale->skip_nonfinite ? Scaling::if_finite : Scaling::always;
    push("gradient scale", scale->value, mx::float32);
  }
  return sources;
}

} // namespace mlx_opt
