#include "mlx_opt/functions.h"

#include <stdexcept>

#include "mlx/ops.h"
#include "mlx_opt/apply.h"
#include "mlx_opt/definition.h"

namespace mlx_opt {

std::vector<std::string_view> state_names(const Hyperparameters& hypers) {
  return definition(hypers).state;
}

Arrays initial_state(const Hyperparameters& hypers, const Arrays& parameters) {
  const size_t arrays = state_names(hypers).size();
  Arrays state;
  state.reserve(parameters.size() * arrays);
  for (const mx::array& parameter : parameters) {
    state.insert(state.end(), arrays, mx::zeros_like(parameter));
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
    mx::StreamOrDevice s) {
  const auto name = [](size_t i) { return "parameter " + std::to_string(i); };
  apply(definition(hypers), name, parameters, std::move(gradients), state, learning_rate, step, s);
}

} // namespace mlx_opt
