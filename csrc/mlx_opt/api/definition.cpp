#include "mlx_opt/api/definition.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "mlx_opt/algorithms/muon.h"

namespace mlx_opt {
namespace {

// Hyperparameters and options by the names that the rules' descriptions give them.
using Values = std::map<std::string, double>;

[[noreturn]] void refuse(std::string_view optimizer, const std::string& what) {
  throw std::invalid_argument("mlx_opt " + std::string(optimizer) + ": " + what);
}

bool holds(const Condition& condition, const Values& values) {
  const auto found = values.find(condition.option);
  const double value = found == values.end() ? 0.0 : found->second;
  switch (condition.setting) {
    case Setting::positive:
      return value > 0.0;
    case Setting::on:
      return value != 0.0;
    case Setting::off:
      return value == 0.0;
  }
  return false;
}

Rule rule_for(std::string_view optimizer, const Values& values) {
  for (Rule rule : rules_of(optimizer)) {
    const auto conditions = conditions_of(rule);
    if (std::all_of(conditions.begin(), conditions.end(), [&](const Condition& condition) {
          return holds(condition, values);
        })) {
      return rule;
    }
  }
  refuse(optimizer, "there is no such optimizer");
}

bool is_known(std::string_view optimizer, const std::string& name) {
  for (Rule rule : rules_of(optimizer)) {
    const auto hypers = hypers_of(rule);
    const auto conditions = conditions_of(rule);
    if (std::any_of(
            hypers.begin(), hypers.end(), [&](auto& x) { return x.name == name && !x.kept; }) ||
        std::any_of(
            conditions.begin(), conditions.end(), [&](auto& x) { return x.option == name; })) {
      return true;
    }
  }
  return false;
}

std::vector<Scalar> hypers_for(std::string_view optimizer, Rule rule, const Values& values) {
  for (const auto& [name, value] : values) {
    if (!is_known(optimizer, name)) {
      refuse(optimizer, "there is no hyperparameter " + name);
    }
  }
  std::vector<Scalar> hypers;
  for (const HyperInfo& hyper : hypers_of(rule)) {
    const auto given = values.find(hyper.name);
    const double value = given == values.end() ? hyper.standard : given->second;
    const std::string problem = range_problem(hyper, value);
    if (!problem.empty()) {
      refuse(optimizer, std::string(hyper.name) + ": " + problem);
    }
    hypers.push_back(value);
  }
  return hypers;
}

bool has_options(Rule rule, const Values& values) {
  const auto slots = slots_of(rule);
  return std::any_of(slots.begin(), slots.end(), [&](const SlotInfo& slot) {
    return slot.option && values.contains(slot.option);
  });
}

bool uses_learning_rate(Rule rule, const std::vector<Scalar>& hypers) {
  const Reads& reads = description_of(rule).learning_rate;
  return reads.when != Reads::unless_set ||
         std::get<double>(hypers[position_of(rule, reads.flag)]) == 0.0;
}

Definition named(const std::string& optimizer, const Values& values) {
  const Rule rule = rule_for(optimizer, values);
  auto hypers = hypers_for(optimizer, rule, values);
  const bool reads_rate = uses_learning_rate(rule, hypers);
  return {Program(rule, has_options(rule, values)), std::move(hypers), reads_rate};
}

Values adam_values(const auto& h) {
  return {
      {"betas[0]", h.beta1},
      {"betas[1]", h.beta2},
      {"eps", h.eps},
      {"bias_correction", h.bias_correction}};
}

Definition define(const SGD& h) {
  if (h.nesterov && (h.momentum <= 0.0 || h.dampening != 0.0)) {
    refuse("SGD", "nesterov needs a momentum above 0 and a dampening of 0");
  }
  return named(
      "SGD",
      {{"momentum", h.momentum},
       {"dampening", h.dampening},
       {"weight_decay", h.weight_decay},
       {"nesterov", h.nesterov}});
}

Definition define(const RMSprop& h) {
  return named("RMSprop", {{"alpha", h.alpha}, {"eps", h.eps}});
}

Definition define(const Adagrad& h) {
  return named("Adagrad", {{"eps", h.eps}});
}

Definition define(const AdaDelta& h) {
  return named("AdaDelta", {{"rho", h.rho}, {"eps", h.eps}});
}

Definition define(const Adam& h) {
  Values values = adam_values(h);
  values["weight_decay"] = 0.0;
  return named("AdamW", values);
}

Definition define(const AdamW& h) {
  Values values = adam_values(h);
  values["weight_decay"] = h.weight_decay;
  return named("AdamW", values);
}

Definition define(const Adamax& h) {
  return named("Adamax", {{"betas[0]", h.beta1}, {"betas[1]", h.beta2}, {"eps", h.eps}});
}

Definition define(const Lion& h) {
  return named(
      "Lion", {{"betas[0]", h.beta1}, {"betas[1]", h.beta2}, {"weight_decay", h.weight_decay}});
}

Definition define(const Adafactor& h) {
  Values values = {
      {"eps[0]", h.eps.first},
      {"eps[1]", h.eps.second},
      {"clip_threshold", h.clip_threshold},
      {"decay_rate", h.decay_rate},
      {"weight_decay", h.weight_decay},
      {"scale_parameter", h.scale_parameter},
      {"relative_step", h.relative_step},
      {"warmup_init", h.warmup_init}};
  if (h.beta_1) {
    values["beta_1"] = *h.beta_1;
  }
  return named("Adafactor", values);
}

Definition define(const Muon& h) {
  Definition definition = named(
      "Muon",
      {{"momentum", h.momentum}, {"nesterov", h.nesterov}, {"weight_decay", h.weight_decay}});
  definition.program = muon_program(h);
  definition.uses_learning_rate = true;
  return definition;
}

Definition define(const RuleByName& h) {
  return named(h.name, h.hypers);
}

} // namespace

Definition definition(const Hyperparameters& hypers) {
  return std::visit([](const auto& h) { return define(h); }, hypers);
}

std::vector<std::string_view> state_names(const Program& program, size_t ndim) {
  std::vector<std::string_view> names;
  for (const SlotInfo* slot : program.state_slots(ndim)) {
    names.push_back(slot->name);
  }
  return names;
}

} // namespace mlx_opt
