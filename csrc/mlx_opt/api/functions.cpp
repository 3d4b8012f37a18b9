#include "mlx_opt/api/functions.h"

#include <stdexcept>

#include "mlx/ops.h"
#include "mlx_opt/api/run_step.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt {
namespace {

void check_count(const char* what, size_t given, size_t expected) {
  if (given != expected) {
    throw std::invalid_argument(
        "mlx_opt: expected " + std::to_string(expected) + " " + what + ", got " +
        std::to_string(given));
  }
}

} // namespace

std::vector<std::string_view> state_names(const Hyperparameters& hypers, size_t ndim) {
  return definition(hypers).names(ndim);
}

Arrays initial_state(const Hyperparameters& hypers, const Arrays& parameters) {
  const Definition definition = mlx_opt::definition(hypers);
  Arrays state;
  for (const mx::array& parameter : parameters) {
    const mx::Shape& shape = parameter.shape();
    const size_t arrays = definition.names(shape.size()).size();
    for (size_t k = 0; k < arrays; ++k) {
      const bool factored = definition.factors(shape.size());
      state.push_back(mx::zeros(state_shape(shape, factored, k), parameter.dtype()));
    }
  }
  return state;
}

void update(
    Arrays& parameters,
    Arrays gradients,
    Arrays& state,
    const Hyperparameters& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::StreamOrDevice s) {
  const Definition definition = mlx_opt::definition(hypers);
  check_count("gradients", gradients.size(), parameters.size());
  std::vector<Leaf> leaves;
  leaves.reserve(parameters.size());
  size_t next = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    leaves.push_back({&parameters[i], &gradients[i], state.data() + next});
    next += definition.names(parameters[i].ndim()).size();
  }
  check_count("arrays of state", state.size(), next);
  const auto name = [](size_t i) { return "parameter " + std::to_string(i); };
  check(definition, name, leaves, s);
  mx::array number = step;
  apply(definition, leaves, learning_rate, number, scale, s);
}

} // namespace mlx_opt
