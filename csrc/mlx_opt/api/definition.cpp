#include "mlx_opt/api/definition.h"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "mlx_opt/algorithms/muon.h"
#include "mlx_opt/api/ema_rate.h"
#include "mlx_opt/api/named_values.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

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
    case Setting::decoupled: { // by default
      const auto decay = values.find("weight_decay");
      return found == values.end() || value == static_cast<double>(WeightDecayKind::decoupled) ||
             (decay != values.end() && decay->second == 0.0);
    }
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

bool can_maximize(std::string_view optimizer) {
  constexpr std::string_view able[] = {"AdamW", "Lion", "Muon", "SGD"};
  return std::find(std::begin(able), std::end(able), optimizer) != std::end(able);
}

// Takes the option, which is no hyperparameter of a rule, out of the values.
bool take_maximize(std::string_view optimizer, Values& values) {
  if (!can_maximize(optimizer)) {
    return false;
  }
  const auto found = values.extract("maximize");
  return !found.empty() && found.mapped() != 0.0;
}

void check_nesterov(const Values& values) {
  const auto value = [&](const char* name) { return values.at(name); };
  if (value("nesterov") != 0.0 && (value("momentum") <= 0.0 || value("dampening") != 0.0)) {
    refuse("SGD", "nesterov needs a momentum above 0 and a dampening of 0");
  }
}

void check_decay(std::string_view optimizer, Rule rule, const std::vector<Scalar>& hypers) {
  const auto value = [&](const char* name) {
    return std::get<double>(hypers[position_of(rule, name)]);
  };
  const auto infos = hypers_of(rule);
  const bool has_kind = std::any_of(infos.begin(), infos.end(), [](const HyperInfo& hyper) {
    return hyper.range == Range::decay_kind;
  });
  if (!has_kind || value("weight_decay") == 0.0) {
    return;
  }
  const auto kind = static_cast<WeightDecayKind>(value("weight_decay_kind"));
  if (kind == WeightDecayKind::coupled && value("cautious_weight_decay") != 0.0) {
    refuse(optimizer, "cautious_weight_decay needs a weight_decay_kind other than coupled");
  }
  if (kind == WeightDecayKind::corrected && value("max_learning_rate") == 0.0) {
    refuse(optimizer, "a weight_decay_kind of corrected needs max_learning_rate");
  }
}

Format format_of(std::string_view optimizer, mx::Dtype dtype) {
  if (dtype == mx::float32) {
    return Format::float32;
  }
  if (dtype == mx::float16) {
    return Format::float16;
  }
  if (dtype == mx::bfloat16) {
    return Format::bfloat16;
  }
  if (dtype == mx::int8) {
    return Format::int8;
  }
  const std::string given = dtype_text(dtype);
  refuse(optimizer, "a state's dtype must be float32, float16, bfloat16 or int8, got " + given);
}

// The formats of the slots of all rules of an optimizer, as in Python's state_dtypes.py.
std::optional<Formats> formats_for(std::string_view optimizer, const StateDtypes& dtypes) {
  if (!dtypes.all && dtypes.of.empty()) {
    return std::nullopt;
  }
  Formats formats;
  std::set<std::string> names;
  for (Rule rule : rules_of(optimizer)) {
    for (const SlotInfo& slot : slots_of(rule)) {
      names.insert(slot.name);
      const bool fits = dtypes.all != mx::int8 || slot.codes != Codes::none;
      if (dtypes.all && slot.format == Format::promoted && fits) {
        formats[slot.name] = format_of(optimizer, *dtypes.all);
      }
    }
  }
  if (dtypes.all == mx::int8 && formats.empty()) {
    refuse(optimizer, "there is no state that int8 can hold");
  }
  for (const auto& [name, dtype] : dtypes.of) {
    if (!names.contains(name)) {
      refuse(optimizer, "there is no state \"" + name + "\" to have a dtype");
    }
    formats[name] = format_of(optimizer, dtype);
  }
  return formats;
}

// True if the option is given and not 0.
bool is_on(const Values& values, const char* name) {
  const auto found = values.find(name);
  return found != values.end() && found->second != 0.0;
}

void check_cautious(std::string_view optimizer, const Values& values) {
  if (!is_on(values, "cautious")) {
    return;
  }
  if (is_on(values, "amsgrad")) {
    refuse(optimizer, "cautious does not go with amsgrad");
  }
  const auto kind = values.find("weight_decay_kind");
  if (kind != values.end() && kind->second == static_cast<double>(WeightDecayKind::coupled) &&
      is_on(values, "weight_decay")) {
    refuse(optimizer, "cautious needs a weight_decay_kind other than coupled");
  }
}

Program with_options(const Program& program, const Options& options) {
  const Program with_masters = program.with(options.master_weights);
  const Program rounding =
      options.rounding_seed ? with_masters.with_rounding(*options.rounding_seed) : with_masters;
  return options.ema.decay != 0.0 ? rounding.with_ema() : rounding;
}

} // namespace

Definition definition(
    const Hyperparameters& hypers,
    const std::map<std::string, double>& values,
    const Options& options) {
  auto [optimizer, all] = named_values(hypers);
  for (const auto& [name, value] : values) {
    all[name] = value;
  }
  if (std::holds_alternative<SGD>(hypers)) {
    check_nesterov(all);
  }
  const bool maximize = take_maximize(optimizer, all);
  const Rule rule = rule_for(optimizer, all);
  auto of_rule = hypers_for(optimizer, rule, all);
  check_decay(optimizer, rule, of_rule);
  const auto formats = formats_for(optimizer, options.state_dtypes);
  check_cautious(optimizer, all);
  check(options.ema, optimizer);
  if (const Muon* muon = std::get_if<Muon>(&hypers)) {
    Muon own = *muon;
    own.normuon = all["normuon"] != 0.0;
    own.adamuon = all["adamuon"] != 0.0;
    if (own.hyperball && all["weight_decay"] != 0.0) {
      refuse(optimizer, "hyperball needs a weight_decay of 0");
    }
    Program program = with_options(muon_program(own, stack_elements, formats), options);
    return {std::move(program), std::move(of_rule), true, options.ema, maximize};
  }
  const bool reads_rate = uses_learning_rate(rule, of_rule);
  const Program program(rule, has_options(rule, all), nullptr, formats);
  return {with_options(program, options), std::move(of_rule), reads_rate, options.ema, maximize};
}

std::vector<std::string_view> state_names(const Slots& slots) {
  std::vector<std::string_view> names;
  for (const SlotInfo* slot : slots) {
    names.push_back(slot->name);
  }
  return names;
}

} // namespace mlx_opt
