#include "mlx_opt/api/optimizer.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/algorithms/muon_factors.h"
#include "mlx_opt/api/accumulation.h"
#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/clipped.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/api/loss_scale.h"
#include "mlx_opt/api/step_leaves.h"
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

mx::array one_more_unless(
    const mx::array& finite, const std::optional<mx::array>& count, mx::StreamOrDevice s) {
  const mx::array one(std::uint64_t{1});
  const mx::array before = count.value_or(mx::array(std::uint64_t{0}));
  return mx::where(finite, before, mx::add(before, one, s), s);
}

// The numbers that a rule keeps, by the keys of combinations.
using Numbers = std::map<std::string, Arrays>;

// Those of a step. `before`: of the one before it.
Numbers next_numbers(
    const Assignment& assignment,
    const Numbers& before,
    const StepNumbers& numbers,
    const Numbers& sums,
    mx::StreamOrDevice s) {
  Numbers all;
  for (const Combination& combination : assignment.combinations) {
    const std::string& key = combination.kept_key;
    const auto own = before.find(key);
    if (own == before.end() || all.contains(key)) {
      continue;
    }
    auto hypers = combination.definition.hypers;
    std::copy(own->second.begin(), own->second.end(), hypers.end() - own->second.size());
    const auto of_key = sums.find(key);
    all[key] = next_kept(
        combination.definition.program.rule(),
        hypers,
        numbers.learning_rate,
        numbers.step,
        of_key == sums.end() ? Arrays{} : of_key->second,
        s);
  }
  return all;
}

// `next` if the step is applied, else `before`.
Numbers chosen(
    const mx::array& applied, Numbers next, const Numbers& before, mx::StreamOrDevice s) {
  for (auto& [key, own] : next) {
    for (size_t i = 0; i < own.size(); ++i) {
      own[i] = mx::where(applied, own[i], before.at(key)[i], s);
    }
  }
  return next;
}

} // namespace

Optimizer::Optimizer(
    const NamedArrays& parameters,
    const Hyperparameters& hypers,
    std::optional<double> learning_rate,
    const std::vector<Group>& groups,
    const Options& options)
    : learning_rate_(learning_rate) {
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
    Clip clip,
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
  if (loss_scale_) {
    const mx::array& value = loss_scale_->value;
    divisor = divisor ? mx::multiply(value, *divisor, s) : value;
    clip.skip_nonfinite = true;
  }
  const Clipped clipped = mlx_opt::clipped(clip, leaves.gradients(), divisor, s);
  std::optional<mx::array> skipped = skipped_;
  std::optional<LossScale> loss_scale;
  if (clipped.finite) {
    skipped = one_more_unless(*clipped.finite, skipped_, s);
  }
  if (loss_scale_) {
    loss_scale = after_step(*loss_scale_, *clipped.finite, s);
  }
  mx::array step(attempts_ + 1);
  if (skipped) {
    step = mx::subtract(step, *skipped, s);
  }
  std::vector<mx::array*> counters = {&step};
  if (skipped) {
    counters.push_back(&*skipped);
  }
  if (loss_scale) {
    counters.insert(counters.end(), {&loss_scale->value, &loss_scale->steps});
  }
  const StepNumbers numbers{mx::array(learning_rate_.value_or(0.0f)), step, s};
  Numbers sums;
  if (sums_over_all(definition().program.rule())) {
    sums = leaves.sums(numbers, kept_, clipped.scale, s);
  }
  const Numbers next = next_numbers(assignment(), kept_, numbers, sums, s);
  Numbers kept = clipped.finite ? chosen(*clipped.finite, next, kept_, s) : next;
  for (auto& [key, own] : kept) {
    for (mx::array& number : own) {
      counters.push_back(&number);
    }
  }
  run_step(std::move(leaves).with_scalars(numbers, next), clipped.scale, counters, s);
  pending_ = {};
  ++attempts_;
  step_ = std::move(step);
  grad_norm_ = clipped.norm ? clipped.norm : grad_norm_;
  loss_scale_ = std::move(loss_scale);
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
