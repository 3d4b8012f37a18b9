#include "mlx_opt/graph/clip_scale.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/small_step.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/rules/clip.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {
namespace {

constexpr float any_norm = std::numeric_limits<float>::infinity();

// {norm} or {norm, max_norm}; a constant max_norm is passed separately.
using Inputs = std::vector<mx::array>;

mx::array scale_by_operations(
    const Inputs& inputs, float max_norm, bool skip_nonfinite, mx::Stream s) {
  const mx::array& norm = inputs[0];
  const auto constant = [&](double x) { return mx::array(x, norm.dtype()); };
  const mx::array limit = inputs.size() > 1 ? inputs[1] : constant(max_norm);
  const mx::array ratio = mx::divide(limit, mx::add(norm, constant(1e-6), s), s);
  const mx::array scale = mx::minimum(ratio, constant(1.0), s);
  if (!skip_nonfinite) {
    return scale;
  }
  const mx::array nan = constant(std::numeric_limits<double>::quiet_NaN());
  return mx::where(mx::isfinite(norm, s), scale, nan, s);
}

class ScaleTask {
 public:
  ScaleTask(const Inputs& inputs, float max_norm, bool skip_nonfinite)
      : norm_(inputs[0].data<float>()),
        traced_max_norm_(inputs.size() > 1 ? inputs[1].data<float>() : nullptr),
        max_norm_(max_norm),
        skip_nonfinite_(skip_nonfinite) {}

  float operator()() const {
    const float max_norm = traced_max_norm_ ? *traced_max_norm_ : max_norm_;
    return MLX_OPT_LEVEL::Clipping::scale(*norm_, max_norm, skip_nonfinite_);
  }

 private:
  const float* norm_;
  const float* traced_max_norm_; // null if max_norm is a constant
  float max_norm_;
  bool skip_nonfinite_;
};

class ClipScale : public mx::UnaryPrimitive {
 public:
  ClipScale(mx::Stream stream, float max_norm, bool skip_nonfinite)
      : mx::UnaryPrimitive(stream), max_norm_(max_norm), skip_nonfinite_(skip_nonfinite) {}

  void eval_cpu(const Inputs& inputs, mx::array& output) override {
    set_data(output, new_data(output.nbytes()));
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([task = ScaleTask(inputs, max_norm_, skip_nonfinite_),
                      scale = output.data<float>()] { *scale = task(); });
  }

  void eval_gpu(const Inputs& inputs, mx::array& output) override {
    gpu::find_backend().backend->clip(inputs, max_norm_, skip_nonfinite_, output, stream());
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const Inputs& inputs, const std::vector<int>& axes) override {
    const int axis = *std::max_element(axes.begin(), axes.end());
    return {{scale_by_operations(inputs, max_norm_, skip_nonfinite_, stream())}, {axis}};
  }

  std::vector<mx::Shape> output_shapes(const Inputs&) override {
    return {{}};
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& that = static_cast<const ClipScale&>(other);
    return max_norm_ == that.max_norm_ && skip_nonfinite_ == that.skip_nonfinite_;
  }

  const char* name() const override {
    return "mlx_opt::ClipScale";
  }

 private:
  float max_norm_;
  bool skip_nonfinite_;
};

GradientScale scale_of(Inputs inputs, float max_norm, bool skip_nonfinite, mx::Stream stream) {
  if (std::isinf(max_norm) && inputs.size() == 1 && !skip_nonfinite) {
    return {mx::array(1.0, inputs[0].dtype()), false};
  }
  const bool plain = std::all_of(inputs.begin(), inputs.end(), [](const mx::array& x) {
    return x.dtype() == mx::float32 && x.ndim() == 0;
  });
  if (!plain || !available(stream.device) || traced_for_gradient(refs_to(inputs))) {
    return {scale_by_operations(inputs, max_norm, skip_nonfinite, stream), skip_nonfinite};
  }
  if (are_small(inputs, stream)) {
    return {mx::array(ScaleTask(inputs, max_norm, skip_nonfinite)()), skip_nonfinite};
  }
  auto primitive = std::make_shared<ClipScale>(stream, max_norm, skip_nonfinite);
  return {mx::array({}, mx::float32, std::move(primitive), std::move(inputs)), skip_nonfinite};
}

// C++ streams crash in MLX's CUDA build when they are used from here.
void check(const char* name, std::optional<double> limit) {
  if (limit && !(*limit >= 0.0)) {
    char given[32];
    std::snprintf(given, sizeof given, "%g", *limit);
    throw std::invalid_argument(
        std::string("mlx_opt: ") + name + " should be >=0, " + given + " was provided instead");
  }
}

} // namespace

void check(const Clip& clip) {
  check("max_norm", clip.max_norm);
  check("max_value", clip.max_value);
}

void begin_scale(const mx::array& scale) {
  if (scale.is_tracer() || !scale.has_primitive()) {
    return;
  }
  const mx::Stream stream = scale.primitive().stream();
  constexpr int norm_and_scale = 2;
  if (stream.device == mx::Device::gpu && inputs_are_ready(scale, norm_and_scale, stream)) {
    mx::async_eval({scale});
  }
}

GradientScale gradient_scale(
    const mx::array& norm,
    const std::optional<mx::array>& max_norm,
    bool skip_nonfinite,
    mx::StreamOrDevice s) {
  Inputs inputs = {norm};
  if (max_norm) {
    inputs.push_back(*max_norm);
  }
  return scale_of(std::move(inputs), any_norm, skip_nonfinite, mx::to_stream(s));
}

GradientScale gradient_scale(const mx::array& norm, const Clip& clip, mx::StreamOrDevice s) {
  check(clip);
  const float max_norm = clip.max_norm ? static_cast<float>(*clip.max_norm) : any_norm;
  GradientScale scale = scale_of({norm}, max_norm, clip.skip_nonfinite, mx::to_stream(s));
  if (clip.max_value) {
    scale.max_value = mx::array(static_cast<float>(*clip.max_value));
  }
  return scale;
}

} // namespace mlx_opt
