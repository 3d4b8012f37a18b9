#include "mlx_opt/api/run_step.h"

#include <algorithm>
#include <stdexcept>

#include "mlx/version.h"
#include "mlx_opt/algorithms/adafactor.h"
#include "mlx_opt/algorithms/muon.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/eager/in_place.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/text.h"
#include "mlx_opt/version.h"

namespace mlx_opt {
namespace {

[[noreturn]] void reject(const std::string& what) {
  throw std::invalid_argument("mlx_opt: " + what);
}

bool fits(const mx::array& x, const mx::Shape& shape) {
  return x.shape() == shape && is_storage(x.dtype());
}

// The arrays of a leaf's state that the step takes part in.
size_t moments_of(const Definition& definition, const Leaf& leaf) {
  return definition.rule ? info(*definition.rule).moments
                         : definition.names(leaf.parameter->ndim()).size();
}

// Puts the leaves whose state is factored behind the others, and returns how many those are.
size_t put_factored_last(const Definition& definition, std::vector<Leaf>& leaves) {
  const auto first = std::stable_partition(leaves.begin(), leaves.end(), [&](const Leaf& leaf) {
    return !definition.factors(leaf.parameter->ndim());
  });
  return first - leaves.begin();
}

bool applied_in_place(
    const Definition& definition,
    const std::vector<Leaf>& leaves,
    size_t unfactored,
    const mx::array& learning_rate,
    mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream) {
  if (definition.muon) {
    return false;
  }
  std::vector<mx::array*> operands;
  operands.reserve(leaves.size() * (definition.state.size() + 3));
  for (const Leaf& leaf : leaves) {
    operands.push_back(leaf.parameter);
    for (size_t k = 0; k < moments_of(definition, leaf); ++k) {
      operands.push_back(leaf.state + k);
    }
    operands.push_back(leaf.gradient);
  }
  wait_for_turn(stream);
  const auto& hypers = definition.hypers;
  const auto run = [&] {
    if (definition.rule) {
      return step_in_place(*definition.rule, operands, hypers, learning_rate, step, stream, scale);
    }
    const bool first_moment = definition.state.size() > 1;
    return adafactor_in_place(
        operands, unfactored, first_moment, hypers, learning_rate, step, stream, scale);
  };
  return run() || (wait_for_holder(stream) && run());
}

// Takes the gradients.
Arrays take_operands(const Definition& definition, const std::vector<Leaf>& leaves) {
  Arrays operands;
  operands.reserve(leaves.size() * (definition.state.size() + 2) + 3);
  for (const Leaf& leaf : leaves) {
    operands.push_back(*leaf.parameter);
    operands.insert(operands.end(), leaf.state, leaf.state + moments_of(definition, leaf));
    operands.push_back(std::move(*leaf.gradient));
  }
  if (traced_for_gradient(operands)) {
    reject("a step cannot be differentiated");
  }
  return operands;
}

Arrays successors(
    const Definition& definition,
    Arrays operands,
    size_t unfactored,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream) {
  const auto& hypers = definition.hypers;
  if (definition.rule) {
    return mlx_opt::step(
        *definition.rule, std::move(operands), hypers, learning_rate, step, stream, scale);
  }
  if (definition.muon) {
    return muon(std::move(operands), *definition.muon, learning_rate, step, scale, stream);
  }
  const bool first_moment = definition.state.size() > 1;
  return adafactor(
      std::move(operands), unfactored, first_moment, hypers, learning_rate, step, stream, scale);
}

} // namespace

void check_mlx() {
  if (std::string_view(mx::version()) != MLX_OPT_MLX_VERSION) {
    throw std::runtime_error(
        std::string("mlx_opt " MLX_OPT_VERSION " is built for MLX " MLX_OPT_MLX_VERSION
                    ", but MLX ") +
        mx::version() + " is running: install mlx==" MLX_OPT_MLX_VERSION);
  }
}

void check_operand(
    const std::string& name,
    const std::string& what,
    const mx::array& x,
    const mx::Shape& shape,
    const char* of) {
  if (x.shape() != shape) {
    reject(name + ": " + what + " " + shape_text(x.shape()) + ", " + of + " " + shape_text(shape));
  }
  if (!is_storage(x.dtype())) {
    reject(
        name + ": " + what + " must be float32, float16 or bfloat16, got " + dtype_text(x.dtype()));
  }
}

void check(
    const Definition& definition,
    const Name& name,
    const std::vector<Leaf>& leaves,
    mx::StreamOrDevice s) {
  check_mlx();
  if (!available(mx::to_stream(s).device)) {
    throw std::runtime_error("mlx_opt: this build has no backend for the device in use");
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    const auto& [parameter, gradient, state] = leaves[i];
    const mx::Shape& shape = parameter->shape();
    if (!fits(*parameter, shape) || !fits(*gradient, shape)) {
      check_operand(name(i), "parameter", *parameter, shape);
      check_operand(name(i), "gradient", *gradient, shape);
    }
    const bool factored = definition.factors(shape.size());
    const auto& names = definition.names(shape.size());
    for (size_t k = 0; k < names.size(); ++k) {
      const mx::Shape expected = state_shape(shape, factored, k);
      if (!fits(state[k], expected)) {
        const std::string what = "state " + std::string(names[k]);
        check_operand(name(i), what, state[k], expected, "expected");
      }
    }
  }
}

void apply(
    const Definition& definition,
    std::vector<Leaf> leaves,
    const mx::array& learning_rate,
    mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const size_t unfactored = put_factored_last(definition, leaves);
  if (applied_in_place(definition, leaves, unfactored, learning_rate, step, scale, stream)) {
    return;
  }
  Arrays operands = take_operands(definition, leaves);
  Arrays results =
      successors(definition, std::move(operands), unfactored, learning_rate, step, scale, stream);
  auto next = results.begin();
  for (const Leaf& leaf : leaves) {
    const size_t moments = moments_of(definition, leaf);
    *leaf.parameter = std::move(*next++);
    std::move(next, next + moments, leaf.state);
    next += moments;
  }
}

} // namespace mlx_opt
