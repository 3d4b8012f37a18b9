#include "mlx_opt/graph/check.h"

#include <stdexcept>
#include <string>

#include "mlx/ops.h"
#include "mlx_opt/graph/step_primitive.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

[[noreturn]] void reject(Rule rule, const std::string& what) {
  refuse(info(rule).name, what);
}

bool is_zero(const Scalar& x) {
  return std::holds_alternative<double>(x) && std::get<double>(x) == 0.0;
}

// Appends the dtypes of one tensor's results.
void push_dtypes(
    Rule rule,
    const mx::array* const* operands,
    const std::vector<Scalar>& hypers,
    std::vector<mx::Dtype>& dtypes) {
  const int moments = info(rule).moments;
  mx::Dtype gradient = operands[moments + 1]->dtype();
  // Decay that is added to the gradient brings the parameter's dtype with it.
  const bool may = rule == Rule::Momentum || rule == Rule::Nesterov || rule == Rule::Muon;
  const bool coupled = may && !is_zero(hypers.back());
  if (coupled) {
    gradient = mx::promote_types(gradient, operands[0]->dtype());
  }
  const size_t parameter = dtypes.size();
  dtypes.push_back(mx::promote_types(operands[0]->dtype(), gradient));
  for (int k = 1; k <= moments; ++k) {
    mx::Dtype moment = mx::promote_types(operands[k]->dtype(), gradient);
    if (rule == Rule::AdaDelta && k == 2) {
      moment = mx::promote_types(moment, operands[1]->dtype());
    }
    dtypes.push_back(moment);
    dtypes[parameter] = mx::promote_types(dtypes[parameter], moment);
  }
}

void check(Rule rule, const Pointers& operands, const std::vector<Scalar>& hypers) {
  const size_t width = info(rule).moments + 2;
  if (operands.size() % width != 0) {
    reject(rule, "expected " + std::to_string(width) + " operands a tensor");
  }
  if (hypers.size() != static_cast<size_t>(info(rule).hypers)) {
    reject(
        rule,
        "expected " + std::to_string(info(rule).hypers) + " hyperparameters, got " +
            std::to_string(hypers.size()));
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    const mx::array& operand = *operands[i];
    const mx::array& parameter = *operands[i - i % width];
    if (operand.shape() != parameter.shape()) {
      reject(
          rule,
          "operand " + std::to_string(i % width) + " of tensor " + std::to_string(i / width) +
              " has shape " + shape_text(operand.shape()) + ", the parameter " +
              shape_text(parameter.shape()));
    }
    if (!is_storage(operand.dtype())) {
      reject(rule, "operands must be float32, float16 or bfloat16");
    }
  }
}

std::vector<mx::Dtype> result_dtypes(
    Rule rule, const Pointers& operands, const std::vector<Scalar>& hypers) {
  const size_t width = info(rule).moments + 2;
  std::vector<mx::Dtype> dtypes;
  dtypes.reserve(operands.size() / width * (width - 1));
  for (size_t first = 0; first < operands.size(); first += width) {
    push_dtypes(rule, &operands[first], hypers, dtypes);
  }
  return dtypes;
}

} // namespace

std::shared_ptr<TokenStep> checked_step(
    Rule rule, const Pointers& operands, const Given& given, std::vector<mx::array>& scalars) {
  check(rule, operands, given.hypers);
  auto dtypes = result_dtypes(rule, operands, given.hypers);
  Schedule schedule{push_scalars(info(rule).name, given, scalars), rule};
  return std::make_shared<Update>(given.stream, std::move(schedule), std::move(dtypes));
}

void refuse(std::string_view rule, const std::string& what) {
  throw std::invalid_argument("mlx_opt " + std::string(rule) + ": " + what);
}

ScalarSources push_scalars(
    std::string_view rule, const Given& given, std::vector<mx::array>& scalars) {
  const auto& [hypers, learning_rate, step, scale, stream] = given;
  auto push = [&, stream = given.stream](const char* name, const mx::array& x, mx::Dtype dtype) {
    if (x.size() != 1) {
      refuse(rule, std::string(name) + " must be a scalar, got shape " + shape_text(x.shape()));
    }
    scalars.push_back(x.dtype() == dtype ? x : mx::astype(x, dtype, stream));
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
