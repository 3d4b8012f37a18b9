#include "mlx_opt/ops.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_set>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx_opt/backend/gpu.h"
#include "mlx_opt/scalars.h"
#include "mlx_opt/update.h"

namespace mlx_opt {
namespace {

[[noreturn]] void reject(Rule rule, const std::string& what) {
  refuse(info(rule).name, what);
}

void check(Rule rule, const std::vector<mx::array>& operands, size_t hypers) {
  const size_t width = info(rule).moments + 2;
  if (operands.size() % width != 0) {
    reject(rule, "expected " + std::to_string(width) + " operands a tensor");
  }
  if (hypers != static_cast<size_t>(info(rule).hypers)) {
    reject(
        rule,
        "expected " + std::to_string(info(rule).hypers) + " hyperparameters, got " +
            std::to_string(hypers));
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    const auto& parameter = operands[i - i % width];
    if (operands[i].shape() != parameter.shape()) {
      reject(
          rule,
          "operand " + std::to_string(i % width) + " of tensor " + std::to_string(i / width) +
              " has shape " + shape_text(operands[i].shape()) + ", the parameter " +
              shape_text(parameter.shape()));
    }
    if (!is_storage(operands[i].dtype())) {
      reject(rule, "operands must be float32, float16 or bfloat16");
    }
  }
}

bool is_zero(const Scalar& x) {
  return std::holds_alternative<double>(x) && std::get<double>(x) == 0.0;
}

// The dtypes of a tensor's new parameter and moments, as stock's formulas promote them.
void push_dtypes(
    Rule rule,
    const mx::array* operands,
    const std::vector<Scalar>& hypers,
    std::vector<mx::Dtype>& dtypes) {
  const int moments = info(rule).moments;
  mx::Dtype gradient = operands[moments + 1].dtype();
  // Decay that is added to the gradient brings the parameter's dtype with it.
  const bool may = rule == Rule::Momentum || rule == Rule::Nesterov || rule == Rule::Muon;
  const bool coupled = may && !is_zero(hypers.back());
  if (coupled) {
    gradient = mx::promote_types(gradient, operands[0].dtype());
  }
  const size_t parameter = dtypes.size();
  dtypes.push_back(mx::promote_types(operands[0].dtype(), gradient));
  for (int k = 1; k <= moments; ++k) {
    mx::Dtype moment = mx::promote_types(operands[k].dtype(), gradient);
    if (rule == Rule::AdaDelta && k == 2) {
      moment = mx::promote_types(moment, operands[1].dtype());
    }
    dtypes.push_back(moment);
    dtypes[parameter] = mx::promote_types(dtypes[parameter], moment);
  }
}

} // namespace

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
  check(rule, operands, hypers.size());
  if (operands.empty()) {
    return {};
  }
  const mx::Stream stream = mx::to_stream(s);
  std::vector<mx::Dtype> dtypes;
  const int width = info(rule).moments + 2;
  dtypes.reserve(operands.size() / width * (width - 1));
  for (size_t first = 0; first < operands.size(); first += width) {
    push_dtypes(rule, &operands[first], hypers, dtypes);
  }

  std::vector<mx::array>& inputs = operands;
  Schedule schedule{
      push_scalars(info(rule).name, hypers, learning_rate, step, scale, stream, inputs), rule};
  auto update = std::make_shared<Update>(stream, std::move(schedule), std::move(dtypes));
  return take_all(token_of(std::move(update), std::move(inputs)));
}

} // namespace mlx_opt
