#include "mlx_opt/optimizer.h"

#include <stdexcept>

#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx_opt/apply.h"
#include "mlx_opt/version.h"

namespace mlx_opt {
namespace {

[[noreturn]] void reject(const std::string& what) {
  throw std::invalid_argument("mlx_opt: " + what);
}

std::string key_of(const std::string& parameter, std::string_view name) {
  return parameter + "." + std::string(name);
}

const mx::array& entry(const NamedArrays& state, const std::string& key) {
  const auto found = state.find(key);
  if (found == state.end()) {
    reject("the state has no \"" + key + "\"");
  }
  return found->second;
}

mx::array scalar(const NamedArrays& state, const std::string& key, bool whole) {
  const mx::array& x = entry(state, key);
  const bool fits = whole ? mx::issubdtype(x.dtype(), mx::integer)
                          : mx::issubdtype(x.dtype(), mx::number) && x.dtype() != mx::complex64;
  if (x.size() != 1 || !fits) {
    reject(
        "the state's \"" + key + "\" must be one " + (whole ? "integer" : "real number") +
        ", got " + dtype_text(x.dtype()) + " of shape " + shape_text(x.shape()));
  }
  return mx::astype(x, whole ? mx::uint64 : mx::float32, mx::Device::cpu);
}

} // namespace

Optimizer::Optimizer(const NamedArrays& parameters, Hyperparameters hypers, double learning_rate)
    : hypers_(std::move(hypers)),
      names_(state_names(hypers_)),
      learning_rate_(static_cast<float>(learning_rate)) {
  check_mlx();
  for (const auto& [name, parameter] : parameters) {
    check_operand(name, "parameter", parameter, parameter.shape());
    moments_.emplace(name, initial_state(hypers_, {parameter}));
  }
}

void Optimizer::update(NamedArrays& parameters, NamedArrays gradients, mx::StreamOrDevice s) {
  std::vector<NamedArrays::iterator> places;
  std::vector<Arrays*> states;
  Arrays inputs, slopes, state;
  for (auto& [name, gradient] : gradients) {
    const auto parameter = parameters.find(name);
    const auto moments = moments_.find(name);
    if (parameter == parameters.end() || moments == moments_.end()) {
      const bool no_parameter = parameter == parameters.end();
      reject(name + ": there is a gradient but no " + (no_parameter ? "parameter" : "state"));
    }
    places.push_back(parameter);
    states.push_back(&moments->second);
    inputs.push_back(parameter->second);
    slopes.push_back(std::move(gradient));
    state.insert(state.end(), moments->second.begin(), moments->second.end());
  }
  apply(
      definition(hypers_),
      [&](size_t i) { return places[i]->first; },
      inputs,
      std::move(slopes),
      state,
      mx::array(learning_rate_),
      mx::array(step_ + 1),
      s);
  auto moment = state.begin();
  for (size_t i = 0; i < places.size(); ++i) {
    places[i]->second = std::move(inputs[i]);
    for (mx::array& old : *states[i]) {
      old = std::move(*moment++);
    }
  }
  ++step_;
}

NamedArrays Optimizer::state() const {
  NamedArrays state = {{"step", mx::array(step_)}, {"learning_rate", mx::array(learning_rate_)}};
  for (const auto& [parameter, moments] : moments_) {
    for (size_t k = 0; k < names_.size(); ++k) {
      state.emplace(key_of(parameter, names_[k]), moments[k]);
    }
  }
  return state;
}

void Optimizer::set_state(const NamedArrays& state) {
  mx::array step = scalar(state, "step", true);
  mx::array learning_rate = scalar(state, "learning_rate", false);
  auto moments = moments_;
  size_t known = 2;
  Arrays arrays = {step, learning_rate};
  for (auto& [parameter, own] : moments) {
    for (size_t k = 0; k < names_.size(); ++k, ++known) {
      const std::string key = key_of(parameter, names_[k]);
      const mx::array& given = entry(state, key);
      check_operand(key, "state", given, own[k].shape());
      own[k] = given;
      arrays.push_back(given);
    }
  }
  if (known != state.size()) {
    const NamedArrays own = this->state();
    for (const auto& [key, x] : state) {
      if (!own.contains(key)) {
        reject("the state's \"" + key + "\" belongs to no parameter of this optimizer");
      }
    }
  }
  mx::eval(arrays);
  step_ = step.item<std::uint64_t>();
  learning_rate_ = learning_rate.item<float>();
  moments_ = std::move(moments);
}

void Optimizer::save(const std::string& path) const {
  const NamedArrays own = state();
  mx::save_safetensors(path, {own.begin(), own.end()});
}

void Optimizer::load(const std::string& path) {
  try {
    const auto arrays = mx::load_safetensors(path).first;
    set_state({arrays.begin(), arrays.end()});
  } catch (const std::exception& error) {
    throw std::runtime_error("mlx_opt: cannot load " + path + ": " + error.what());
  }
}

Arrays values(const NamedArrays& arrays) {
  Arrays values;
  values.reserve(arrays.size());
  for (const auto& [name, x] : arrays) {
    values.push_back(x);
  }
  return values;
}

const char* version() {
  return MLX_OPT_VERSION;
}

} // namespace mlx_opt
