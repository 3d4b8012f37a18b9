#include "mlx_opt/graph/ops.h"

#include <algorithm>
#include <unordered_set>

#include "mlx/primitives.h"
#include "mlx_opt/backend/backend.h"
#include "mlx_opt/graph/check.h"
#include "mlx_opt/graph/step_primitive.h"

namespace mlx_opt {

std::string shape_text(const mx::Shape& shape) {
  std::string text;
  for (int size : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

std::optional<Rule> find_rule(std::string_view name) {
  for (size_t i = 0; i < std::size(rule_infos); ++i) {
    if (rule_infos[i].name == name) {
      return static_cast<Rule>(i);
    }
  }
  return std::nullopt;
}

bool available(mx::Device device) {
  return device == mx::Device::cpu || gpu::find_backend().backend;
}

bool is_storage(mx::Dtype dtype) {
  return dtype == mx::float32 || dtype == mx::float16 || dtype == mx::bfloat16;
}

mx::Shape state_shape(const mx::Shape& parameter, bool factored, size_t index) {
  mx::Shape shape = parameter;
  if (factored && index < 2) {
    shape.erase(shape.end() - 1 - index);
  }
  return shape;
}

// MLX does not export its own answer, but vjp and jvp leave a mark: they trace from copies of
// their primals, where compile and vmap trace from arrays without a primitive.
bool traced_for_gradient(const std::vector<mx::array>& arrays) {
  std::vector<mx::array> stack;
  std::unordered_set<std::uintptr_t> seen;
  auto push = [&](const mx::array& x) {
    if (x.is_tracer() && x.has_primitive() && seen.insert(x.id()).second) {
      stack.push_back(x);
    }
  };
  std::for_each(arrays.begin(), arrays.end(), push);
  while (!stack.empty()) {
    const mx::array x = std::move(stack.back());
    stack.pop_back();
    if (std::string_view(x.primitive().name()) == "Copy") {
      return true;
    }
    std::for_each(x.inputs().begin(), x.inputs().end(), push);
  }
  return false;
}

std::vector<mx::array> step(
    Rule rule,
    std::vector<mx::array> operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  if (operands.empty()) {
    return {};
  }
  std::vector<mx::array> scalars;
  auto update = checked_step(
      rule, pointers_to(operands), {hypers, learning_rate, step, scale, mx::to_stream(s)}, scalars);
  return outputs_of(std::move(update), std::move(operands), scalars);
}

} // namespace mlx_opt
