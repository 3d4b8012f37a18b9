#include "mlx_opt/api/functions.h"

#include <stdexcept>

#include "mlx/ops.h"
#include "mlx_opt/api/run_step.h"
#include "mlx_opt/step/kept.h"

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
  return state_names(definition(hypers).program.wide_state_slots(ndim));
}

Arrays initial_state(const Hyperparameters& hypers, const Arrays& parameters) {
  const Definition definition = mlx_opt::definition(hypers);
  Arrays state;
  for (const mx::array& parameter : parameters) {
    const Arrays of_parameter = initial_state(definition.program, parameter);
    state.insert(state.end(), of_parameter.begin(), of_parameter.end());
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
  for (const HyperInfo& kept : kept_by(definition.program.rule())) {
    refuse(definition.program.rule(), std::string("Optimizer alone keeps its ") + kept.name);
  }
  check_count("gradients", gradients.size(), parameters.size());
  std::vector<Leaf> leaves;
  leaves.reserve(parameters.size());
  size_t next = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    leaves.push_back({&parameters[i], &gradients[i], state.data() + next});
    next += definition.program.state_slots(parameters[i]).size();
  }
  check_count("arrays of state", state.size(), next);
  const auto name = [](size_t i) { return "parameter " + std::to_string(i); };
  check_leaves(definition.program, name, leaves, s);
  const GroupScalars scalars{definition.hypers, learning_rate, step};
  run_step(
      {{&definition.program, {scalars}, std::move(leaves), definition.maximize}}, scale, {}, s);
}

} // namespace mlx_opt
