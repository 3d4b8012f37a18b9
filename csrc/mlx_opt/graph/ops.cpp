#include "mlx_opt/graph/ops.h"

#include "mlx_opt/graph/check.h"
#include "mlx_opt/graph/step_primitive.h"

namespace mlx_opt {

mx::Shape state_shape(const mx::Shape& parameter, bool factored, size_t index) {
  mx::Shape shape = parameter;
  if (factored && index < 2) {
    shape.erase(shape.end() - 1 - index);
  }
  return shape;
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
