#include "mlx_opt/api/optimizer.h"

#include <algorithm>
#include <stdexcept>

#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx_opt/algorithms/muon_factors.h"
#include "mlx_opt/api/accumulation.h"
#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/step_leaves.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"
#include "mlx_opt/step/kept.h"
#include "mlx_opt/types/text.h"
#include "mlx_opt/version.h"

namespace mlx_opt {
namespace {

// What mlx.optimizers does not have stands under one reserved name, as in Python.
constexpr const char* grad_norm_key = "mlx_opt.grad_norm";
constexpr const char* telemetry_prefix = "mlx_opt.telemetry.";
constexpr const char* skipped_key = "mlx_opt.skipped";

[[noreturn]] void reject(const std::string& what) {
  throw std::invalid_argument("mlx_opt: " + what);
}

std::string key_of(const std::string& parameter, std::string_view name) {
  return parameter + "." + std::string(name);
}

// Takes an array out of a state.
mx::array take(NamedArrays& state, const std::string& key) {
  auto entry = state.extract(key);
  if (entry.empty()) {
    reject("the state has no \"" + key + "\"");
  }
  return std::move(entry.mapped());
}

mx::array take_scalar(NamedArrays& state, const std::string& key, bool whole) {
  const mx::array x = take(state, key);
  const bool fits = whole ? mx::issubdtype(x.dtype(), mx::integer)
                          : mx::issubdtype(x.dtype(), mx::number) && x.dtype() != mx::complex64;
  if (x.size() != 1 || !fits) {
    reject(
        "the state's \"" + key + "\" must be one " + (whole ? "integer" : "real number") +
        ", got " + dtype_text(x.dtype()) + " of shape " + shape_text(x.shape()));
  }
  return mx::astype(
      mx::reshape(x, {}, mx::Device::cpu), whole ? mx::uint64 : mx::float32, mx::Device::cpu);
}

std::optional<mx::array> take_scalar_if_any(
    NamedArrays& state, const std::string& key, bool whole) {
  return state.contains(key) ? std::optional(take_scalar(state, key, whole)) : std::nullopt;
}

// Earlier versions had these in the root.
void move_former_entries(NamedArrays& state) {
  for (auto [former, key] : {std::pair{"grad_norm", grad_norm_key}, {"skipped", skipped_key}}) {
    auto entry = state.extract(former);
    if (!entry.empty()) {
      state.insert_or_assign(key, std::move(entry.mapped()));
    }
  }
}

std::uint64_t number(const std::optional<mx::array>& count) {
  return count ? mx::array(*count).item<std::uint64_t>() : 0;
}

mx::array one_more_unless_finite(
    const std::optional<mx::array>& count, const mx::array& norm, mx::StreamOrDevice s) {
  const mx::array one(std::uint64_t{1});
  const mx::array before = count.value_or(mx::array(std::uint64_t{0}));
  return mx::where(mx::isfinite(norm, s), before, mx::add(before, one, s), s);
}

// Where the state has a number that the rule keeps. `key`: a combination's, empty for the
// optimizer's own.
std::string key_of_kept(const std::string& key, const char* name) {
  return key.empty() ? name : "mlx_opt.groups." + key + "." + name;
}

} // namespace

Optimizer::Optimizer(
    const NamedArrays& parameters,
    const Hyperparameters& hypers,
    std::optional<double> learning_rate,
    const std::vector<Group>& groups,
    const StateDtypes& state_dtypes)
    : learning_rate_(learning_rate) {
  check_mlx();
  std::vector<std::string> names;
  for (const auto& [name, parameter] : parameters) {
    check_operand(name, "parameter", parameter, parameter.shape());
    names.push_back(name);
  }
  assignment_ = std::make_shared<const Assignment>(assign(names, hypers, groups, state_dtypes));
  for (const Combination& combination : assignment_->combinations) {
    if (!learning_rate && !combination.learning_rate && combination.definition.uses_learning_rate) {
      reject("this optimizer needs a learning rate");
    }
  }
  Arrays first; // the numbers that the rule keeps, before the first step
  for (const HyperInfo& kept : kept_by(definition().program.rule())) {
    first.emplace_back(static_cast<float>(kept.standard));
  }
  if (!first.empty()) {
    for (const Combination& combination : assignment_->combinations) {
      kept_.emplace(combination.kept_key, first);
    }
  }
  for (const auto& [name, parameter] : parameters) {
    const Combination& combination = assignment_->combinations[assignment_->of_names.at(name)];
    const std::string problem = split_problem(combination.split, parameter.shape());
    if (!problem.empty()) {
      reject(name + ": " + problem);
    }
    if (!combination.frozen) {
      const Program& program = combination.definition.program;
      slots_.emplace(
          name,
          SlotArrays{
              state_names(program.state_slots(parameter)), initial_state(program, parameter)});
    }
  }
}

const Definition& Optimizer::definition() const {
  return assignment_->combinations[0].definition;
}

NamedArrays Optimizer::without_frozen(NamedArrays gradients) const {
  std::erase_if(gradients, [&](const auto& gradient) {
    const auto combination = assignment_->of_names.find(gradient.first);
    if (combination == assignment_->of_names.end()) {
      reject(gradient.first + ": there is a gradient but no state");
    }
    return assignment_->combinations[combination->second].frozen;
  });
  return gradients;
}

void Optimizer::accumulate(
    NamedArrays gradients, std::optional<double> normalizer, mx::StreamOrDevice s) {
  add(pending_, without_frozen(std::move(gradients)), normalizer, s);
}

void Optimizer::update(
    NamedArrays& parameters,
    NamedArrays gradients,
    const Clip& clip,
    mx::StreamOrDevice s,
    std::optional<double> normalizer) {
  std::optional<mx::array> divisor;
  if (pending_.calls > 0 || normalizer) {
    Total total =
        total_of(pending_, without_frozen(std::move(gradients)), parameters, normalizer, s);
    gradients = std::move(total.gradients);
    divisor = std::move(total.divisor);
  }
  StepLeaves leaves(*assignment_);
  for (auto& [name, gradient] : gradients) {
    const auto parameter = parameters.find(name);
    const auto combination = assignment_->of_names.find(name);
    const bool no_parameter = parameter == parameters.end();
    if (no_parameter || combination == assignment_->of_names.end()) {
      reject(name + ": there is a gradient but no " + (no_parameter ? "parameter" : "state"));
    }
    if (!assignment_->combinations[combination->second].frozen) {
      auto& slots = slots_.at(name).arrays;
      leaves.add(combination->second, name, {&parameter->second, &gradient, slots.data()});
    }
  }
  leaves.check(s);
  check(clip);
  std::optional<mx::array> norm = grad_norm_, skipped = skipped_;
  std::optional<GradientScale> scale;
  if (clip.max_value) {
    scale = {mx::array(1.0f), false, mx::array(static_cast<float>(*clip.max_value))};
  }
  if (clip.max_norm || clip.skip_nonfinite) {
    norm = global_norm(leaves.gradients(), s);
    norm = divisor ? mx::divide(*norm, *divisor, s) : norm;
    scale = gradient_scale(*norm, clip, s);
    begin_scale(scale->value);
    if (clip.skip_nonfinite) {
      skipped = one_more_unless_finite(skipped, *norm, s);
    }
  }
  if (divisor) {
    scale = scale ? scale : GradientScale{mx::array(1.0f)};
    scale->value = mx::divide(scale->value, *divisor, s);
  }
  mx::array step(attempts_ + 1);
  if (skipped) {
    step = mx::subtract(step, *skipped, s);
  }
  std::vector<mx::array*> counters = {&step};
  if (skipped) {
    counters.push_back(&*skipped);
  }
  const mx::array rate(learning_rate_.value_or(0.0f));
  std::map<std::string, Arrays> kept, next_numbers; // after this step, and in it
  std::map<std::string, Arrays> sums;
  if (sums_over_all(definition().program.rule())) {
    sums = leaves.sums(rate, step, kept_, scale, s);
  }
  for (const Combination& combination : assignment_->combinations) {
    const std::string& key = combination.kept_key;
    const auto before = kept_.find(key);
    if (before == kept_.end() || kept.contains(key)) {
      continue;
    }
    auto hypers = combination.definition.hypers;
    std::copy(before->second.begin(), before->second.end(), hypers.end() - before->second.size());
    const Rule rule = combination.definition.program.rule();
    Arrays& next = next_numbers[key] = next_kept(rule, hypers, rate, step, sums[key], s);
    for (size_t i = 0; i < next.size(); ++i) {
      kept[key].push_back(
          clip.skip_nonfinite ? mx::where(mx::isfinite(*norm, s), next[i], before->second[i], s)
                              : next[i]);
    }
  }
  for (auto& [key, numbers] : kept) {
    for (mx::array& number : numbers) {
      counters.push_back(&number);
    }
  }
  run_step(std::move(leaves).with_scalars(rate, step, next_numbers), scale, counters, s);
  pending_ = {};
  ++attempts_;
  step_ = std::move(step);
  grad_norm_ = std::move(norm);
  skipped_ = std::move(skipped);
  kept_ = std::move(kept);
}

std::uint64_t Optimizer::skipped() const {
  return number(skipped_);
}

NamedArrays Optimizer::state() const {
  NamedArrays state = {{"step", step_}};
  if (learning_rate_) {
    state.emplace("learning_rate", mx::array(*learning_rate_));
  }
  if (grad_norm_) {
    state.emplace(grad_norm_key, *grad_norm_);
  }
  if (skipped_) {
    state.emplace(skipped_key, *skipped_);
  }
  write_state(pending_, state);
  const auto kept = kept_by(definition().program.rule());
  for (const auto& [key, numbers] : kept_) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      state.emplace(key_of_kept(key, kept[i].name), numbers[i]);
    }
  }
  for (const auto& [parameter, slots] : slots_) {
    for (size_t k = 0; k < slots.names.size(); ++k) {
      state.emplace(key_of(parameter, slots.names[k]), slots.arrays[k]);
    }
  }
  return state;
}

Arrays Optimizer::values() const {
  Arrays values = {step_};
  for (const auto& x : {grad_norm_, skipped_}) {
    if (x) {
      values.push_back(*x);
    }
  }
  for (const auto& [name, gradient] : pending_.gradients) {
    values.push_back(gradient);
  }
  if (pending_.normalizer) {
    values.push_back(*pending_.normalizer);
  }
  for (const auto& [key, numbers] : kept_) {
    values.insert(values.end(), numbers.begin(), numbers.end());
  }
  for (const auto& [parameter, slots] : slots_) {
    values.insert(values.end(), slots.arrays.begin(), slots.arrays.end());
  }
  return values;
}

NamedArrays Optimizer::averages(const NamedArrays& parameters, mx::StreamOrDevice s) const {
  const Rule rule = definition().program.rule();
  const auto& [base, part] = description_of(rule).average;
  if (!base) {
    reject(std::string(name_of(rule)) + " does not average the parameters");
  }
  NamedArrays averages = parameters;
  for (auto& [name, average] : averages) {
    const auto slots = slots_.find(name);
    if (slots == slots_.end()) {
      continue;
    }
    const auto& names = slots->second.names;
    const size_t slot = std::find(names.begin(), names.end(), base) - names.begin();
    const mx::array& z = slots->second.arrays.at(slot);
    check_operand(name, "parameter", average, z.shape());
    const Combination& combination = assignment_->combinations[assignment_->of_names.at(name)];
    const Scalar& beta = combination.definition.hypers[position_of(rule, part)];
    const auto weight = static_cast<float>(1.0 - 1.0 / std::get<double>(beta));
    const mx::array w = mx::astype(average, mx::float32, s);
    const mx::array x = mx::add(w, mx::multiply(mx::array(weight), mx::subtract(z, w, s), s), s);
    // A slot that is NaN has had no step.
    average = mx::astype(mx::where(mx::isnan(z, s), w, x, s), average.dtype(), s);
  }
  return averages;
}

void Optimizer::set_state(const NamedArrays& state) {
  NamedArrays rest = state;
  Arrays arrays = {take_scalar(rest, "step", true)};
  const bool uses_learning_rate = definition().uses_learning_rate;
  auto learning_rate = uses_learning_rate ? take_scalar(rest, "learning_rate", false)
                                          : take_scalar_if_any(rest, "learning_rate", false);
  move_former_entries(rest);
  // The norms that Python's telemetry has put there.
  std::erase_if(rest, [](const auto& entry) { return entry.first.starts_with(telemetry_prefix); });
  auto grad_norm = take_scalar_if_any(rest, grad_norm_key, false);
  auto skipped = take_scalar_if_any(rest, skipped_key, true);
  PendingGradients pending = take_pending(rest);
  pending.gradients = without_frozen(std::move(pending.gradients));
  auto kept = kept_;
  const auto infos = kept_by(definition().program.rule());
  for (auto& [key, numbers] : kept) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = take_scalar(rest, key_of_kept(key, infos[i].name), false);
      arrays.push_back(numbers[i]);
    }
  }
  for (const auto& x : {learning_rate, grad_norm, skipped}) {
    if (x) {
      arrays.push_back(*x);
    }
  }
  auto slots = slots_;
  for (auto& [parameter, own] : slots) {
    for (size_t k = 0; k < own.names.size(); ++k) {
      const std::string key = key_of(parameter, own.names[k]);
      mx::array given = take(rest, key);
      const mx::Dtype expected = own.arrays[k].dtype();
      if (expected != mx::int8 && expected != mx::uint8) {
        check_operand(key, "state", given, own.arrays[k].shape(), "expected");
      } else if (given.dtype() != expected || given.shape() != own.arrays[k].shape()) {
        reject(
            key + ": state " + dtype_text(given.dtype()) + " " + shape_text(given.shape()) +
            ", expected " + dtype_text(expected) + " " + shape_text(own.arrays[k].shape()));
      }
      own.arrays[k] = std::move(given);
      arrays.push_back(own.arrays[k]);
    }
  }
  for (const auto& [name, gradient] : pending.gradients) {
    arrays.push_back(gradient);
  }
  if (!rest.empty()) {
    reject("the state's \"" + rest.begin()->first + "\" belongs to no parameter of this optimizer");
  }
  mx::eval(arrays);
  step_ = arrays[0];
  attempts_ = number(step_) + number(skipped);
  learning_rate_ = learning_rate ? std::optional(learning_rate->item<float>()) : std::nullopt;
  skipped_ = std::move(skipped);
  grad_norm_ = std::move(grad_norm);
  kept_ = std::move(kept);
  pending_ = std::move(pending);
  slots_ = std::move(slots);
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
