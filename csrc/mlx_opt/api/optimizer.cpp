#include "mlx_opt/api/optimizer.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/algorithms/muon_factors.h"
#include "mlx_opt/api/accumulation.h"
#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/ema_rate.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/api/step_leaves.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"
#include "mlx_opt/step/kept.h"
#include "mlx_opt/types/text.h"
#include "mlx_opt/version.h"

namespace mlx_opt {
namespace {

std::string names_of(const Slots& slots) {
  std::string names;
  for (const std::string_view name : state_names(slots)) {
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return names.empty() ? "none" : names;
}

// Throws std::invalid_argument unless the parameter can have the program's master weights.
void check_remainder(const Program& program, const std::string& name, const mx::array& parameter) {
  if (program.masters() == MasterWeights::remainder && parameter.dtype() == mx::float16) {
    reject(
        name +
        ": MasterWeights::remainder is for bfloat16, got float16: use "
        "MasterWeights::float32");
  }
}

// Throws std::invalid_argument unless these are the slots of the parameter as it is now.
void check_slots(
    const Program& program,
    const std::string& name,
    const mx::array& parameter,
    const Slots& slots) {
  check_remainder(program, name, parameter);
  const Slots& expected = program.state_slots(parameter);
  if (&expected != &slots && is_storage(parameter.dtype())) {
    reject(
        name + ": a parameter in " + dtype_text(parameter.dtype()) + " of shape " +
        shape_text(parameter.shape()) + " has the state " + names_of(expected) +
        ", but the optimizer was made with one of the state " + names_of(slots));
  }
}

mx::array one_more_unless_finite(
    const std::optional<mx::array>& count, const mx::array& norm, mx::StreamOrDevice s) {
  const mx::array one(std::uint64_t{1});
  const mx::array before = count.value_or(mx::array(std::uint64_t{0}));
  return mx::where(mx::isfinite(norm, s), before, mx::add(before, one, s), s);
}

} // namespace

Optimizer::Optimizer(
    const NamedArrays& parameters,
    const Hyperparameters& hypers,
    std::optional<double> learning_rate,
    const std::vector<Group>& groups,
    const Options& options)
    : learning_rate_(learning_rate), ema_(options.ema) {
  check_mlx();
  std::vector<std::string> names;
  for (const auto& [name, parameter] : parameters) {
    check_operand(name, "parameter", parameter, parameter.shape());
    names.push_back(name);
  }
  assignment_ = std::make_shared<const Assignment>(assign(names, hypers, groups, options));
  for (const Combination& combination : assignment().combinations) {
    if (!learning_rate && !combination.learning_rate && combination.definition.uses_learning_rate) {
      reject("this optimizer needs a learning rate");
    }
  }
  Arrays first; // the numbers that the rule keeps, before the first step
  for (const HyperInfo& kept : kept_by(definition().program.rule())) {
    first.emplace_back(static_cast<float>(kept.standard));
  }
  if (!first.empty()) {
    for (const Combination& combination : assignment().combinations) {
      kept_.emplace(combination.kept_key, first);
    }
  }
  for (const auto& [name, parameter] : parameters) {
    const Combination& combination = assignment().combinations[assignment().of_names.at(name)];
    const std::string problem = split_problem(combination.split, parameter.shape());
    if (!problem.empty()) {
      reject(name + ": " + problem);
    }
    if (!combination.frozen) {
      const Program& program = combination.definition.program;
      check_remainder(program, name, parameter);
      slots_.emplace(
          name,
          SlotArrays{
              parameter.shape(),
              &program.state_slots(parameter),
              initial_state(program, parameter)});
    }
  }
}

const Assignment& Optimizer::assignment() const {
  if (!assignment_) {
    throw std::logic_error("mlx_opt: this optimizer has been moved from");
  }
  return *assignment_;
}

const Definition& Optimizer::definition() const {
  return assignment().combinations[0].definition;
}

NamedArrays Optimizer::trained(NamedArrays gradients) const {
  std::erase_if(gradients, [&](const auto& gradient) {
    const auto combination = assignment().of_names.find(gradient.first);
    if (combination == assignment().of_names.end()) {
      reject(gradient.first + ": there is a gradient but no state");
    }
    return assignment().combinations[combination->second].frozen;
  });
  for (const auto& [name, gradient] : gradients) {
    check_operand(name, "gradient", gradient, slots_.at(name).shape);
  }
  return gradients;
}

void Optimizer::check_takes_gradients() const {
  if (!evaluating_.expired()) {
    throw std::runtime_error(
        "mlx_opt: the parameters are averages: end the Evaluating before the next step");
  }
}

void Optimizer::accumulate(
    NamedArrays gradients, std::optional<double> normalizer, mx::StreamOrDevice s) {
  check_takes_gradients();
  add(pending_, trained(std::move(gradients)), normalizer, s);
}

void Optimizer::update(
    NamedArrays& parameters,
    NamedArrays gradients,
    const Clip& clip,
    mx::StreamOrDevice s,
    std::optional<double> normalizer) {
  check_takes_gradients();
  std::optional<mx::array> divisor;
  if (pending_.calls > 0 || normalizer) {
    Total total = total_of(pending_, trained(std::move(gradients)), parameters, normalizer, s);
    gradients = std::move(total.gradients);
    divisor = std::move(total.divisor);
  }
  StepLeaves leaves(assignment());
  for (auto& [name, gradient] : gradients) {
    const auto parameter = parameters.find(name);
    const auto combination = assignment().of_names.find(name);
    const bool no_parameter = parameter == parameters.end();
    if (no_parameter || combination == assignment().of_names.end()) {
      reject(name + ": there is a gradient but no " + (no_parameter ? "parameter" : "state"));
    }
    if (!assignment().combinations[combination->second].frozen) {
      SlotArrays& own = slots_.at(name);
      const Combination& of_leaf = assignment().combinations[combination->second];
      check_slots(of_leaf.definition.program, name, parameter->second, *own.slots);
      leaves.add(combination->second, name, {&parameter->second, &gradient, own.arrays.data()});
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
  StepNumbers numbers{mx::array(learning_rate_.value_or(0.0f)), step};
  if (definition().program.has_ema()) {
    numbers.ema_rate = ema_rate(ema_, step, s);
  }
  std::map<std::string, Arrays> kept, next_numbers; // after this step, and in it
  std::map<std::string, Arrays> sums;
  if (sums_over_all(definition().program.rule())) {
    sums = leaves.sums(numbers, kept_, scale, s);
  }
  for (const Combination& combination : assignment().combinations) {
    const std::string& key = combination.kept_key;
    const auto before = kept_.find(key);
    if (before == kept_.end() || kept.contains(key)) {
      continue;
    }
    auto hypers = combination.definition.hypers;
    std::copy(before->second.begin(), before->second.end(), hypers.end() - before->second.size());
    const Rule rule = combination.definition.program.rule();
    Arrays& next = next_numbers[key] =
        next_kept(rule, hypers, numbers.learning_rate, step, sums[key], s);
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
  run_step(std::move(leaves).with_scalars(numbers, next_numbers), scale, counters, s);
  pending_ = {};
  ++attempts_;
  step_ = std::move(step);
  grad_norm_ = std::move(norm);
  skipped_ = std::move(skipped);
  kept_ = std::move(kept);
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
