// vmap of the primitives of a step.
#include <algorithm>
#include <stdexcept>

#include "mlx/ops.h"
#include "mlx_opt/graph/batch.h"
#include "mlx_opt/graph/step_primitive.h"

namespace mlx_opt {
namespace {

// Holds the outputs of a batch that was computed one by one, for the StepOutputs to find.
class Bundle : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;
  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::logic_error("mlx_opt::Bundle has no value");
  }
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    eval_cpu(inputs, outputs);
  }
  const char* name() const override {
    return "mlx_opt::Bundle";
  }
};

int batch_size(const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] >= 0) {
      return inputs[i].shape(axes[i]);
    }
  }
  throw std::logic_error("mlx_opt: vmap without a mapped input");
}

mx::array batched(const mx::array& x, int axis, int batch, mx::Stream stream) {
  if (axis >= 0) {
    return mx::moveaxis(x, axis, 0, stream);
  }
  auto shape = x.shape();
  shape.insert(shape.begin(), batch);
  return mx::broadcast_to(mx::expand_dims(x, 0, stream), shape, stream);
}

[[noreturn]] void reject_gradient() {
  throw std::invalid_argument(
      "mlx_opt: a gradient cannot go through vmap of an optimizer's step; take vmap of the "
      "gradient");
}

} // namespace

std::pair<std::vector<mx::array>, std::vector<int>> StepPrimitive::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  const size_t operands = spec_.operand_count();
  const bool mapped_scalar =
      std::any_of(axes.begin() + operands, axes.end(), [](int axis) { return axis >= 0; });
  // Blocks of codes are of one tensor.
  const bool has_codes = std::any_of(
      spec_.runs.begin(), spec_.runs.end(), [](const TensorRun& run) { return run.scales > 0; });
  // So are norms.
  const bool is_of_elements = is_elementwise(spec_.rule) && !spec_.takes_norms;
  if (is_of_elements && !mapped_scalar && !has_codes) {
    const int batch = batch_size(inputs, axes);
    std::vector<mx::array> batched_inputs;
    for (size_t i = 0; i < inputs.size(); ++i) {
      batched_inputs.push_back(
          i < operands ? batched(inputs[i], axes[i], batch, stream()) : inputs[i]);
    }
    return {{token_of(copy(), std::move(batched_inputs))}, {0}};
  }
  const int batch = batch_size(inputs, axes);
  std::vector<std::vector<mx::array>> results(outputs());
  for (int b = 0; b < batch; ++b) {
    std::vector<mx::array> one;
    for (size_t i = 0; i < inputs.size(); ++i) {
      one.push_back(axes[i] >= 0 ? element_of(inputs[i], b, axes[i], stream()) : inputs[i]);
    }
    const mx::array token = token_of(copy(), std::move(one));
    auto outputs = outputs_of(token);
    if (spec_.takes_norms) {
      outputs.push_back(norms_of(token));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      results[i].push_back(outputs[i]);
    }
  }
  std::vector<mx::array> stacked;
  for (const auto& result : results) {
    stacked.push_back(mx::stack(result, 0, stream()));
  }
  auto bundle = std::make_shared<Bundle>(stream());
  return {{mx::array(mx::Shape{}, mx::uint8, std::move(bundle), std::move(stacked))}, {0}};
}

std::pair<std::vector<mx::array>, std::vector<int>> StepOutput::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>&) {
  const mx::array& token = inputs[0];
  if (dynamic_cast<const Bundle*>(&token.primitive())) {
    return {{token.inputs()[position_]}, {0}};
  }
  const auto& step = static_cast<const StepPrimitive&>(token.primitive());
  auto output = std::make_shared<StepOutput>(stream(), position_);
  auto shape = output->output_shapes(inputs)[0];
  return {{mx::array(std::move(shape), step.dtypes()[position_], std::move(output), inputs)}, {0}};
}

// Reached when vmap is inside a gradient: vmap then traces first and cannot see the outer gradient.
std::vector<mx::array> StepPrimitive::jvp(
    const std::vector<mx::array>&, const std::vector<mx::array>&, const std::vector<int>&) {
  reject_gradient();
}

std::vector<mx::array> StepOutput::vjp(
    const std::vector<mx::array>&,
    const std::vector<mx::array>&,
    const std::vector<int>&,
    const std::vector<mx::array>&) {
  reject_gradient();
}

} // namespace mlx_opt
