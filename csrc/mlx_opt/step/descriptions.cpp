#include "mlx_opt/step/descriptions.h"
#include "mlx_opt/rules/composed.h"
#include "mlx_opt/rules/registry.h"

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace mlx_opt {
namespace {

struct Entry {
  std::string_view name;
  const Description& description;
};

constexpr Entry entries[] = {
#define MLX_OPT_ENTRY(name) {#name, MLX_OPT_LEVEL::name::description},
    MLX_OPT_FOR_EACH_RULE(MLX_OPT_ENTRY) MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_ENTRY)
        MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_ENTRY) MLX_OPT_FOR_EACH_COMPOSED_RULE(MLX_OPT_ENTRY)
#undef MLX_OPT_ENTRY
};

template <typename Named, size_t capacity>
constexpr size_t count(const Named (&list)[capacity], const char* Named::* name) {
  size_t n = 0;
  while (n < capacity && list[n].*name) {
    ++n;
  }
  return n;
}

constexpr size_t kernel_slots(const Description& description) {
  size_t n = 0;
  for (const SlotInfo& slot : description.slots) {
    n += slot.name && !slot.idle;
  }
  return n;
}

// The descriptions must agree with the structs that the kernels use.
#define MLX_OPT_CHECK_HYPERS(rule)                                        \
  static_assert(                                                          \
      count(MLX_OPT_LEVEL::rule::description.hypers, &HyperInfo::name) == \
      sizeof(MLX_OPT_LEVEL::rule::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper));
#define MLX_OPT_CHECK_SLOTS(rule)                       \
  static_assert(                                        \
      kernel_slots(MLX_OPT_LEVEL::rule::description) == \
      sizeof(MLX_OPT_LEVEL::rule::Element) / sizeof(float) - 1);
MLX_OPT_FOR_EACH_RULE(MLX_OPT_CHECK_HYPERS)
MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_CHECK_HYPERS)
MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_CHECK_HYPERS)
MLX_OPT_FOR_EACH_RULE(MLX_OPT_CHECK_SLOTS)
MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_CHECK_SLOTS)
#undef MLX_OPT_CHECK_HYPERS
#undef MLX_OPT_CHECK_SLOTS

// Rules with conditions are checked before the rule without.
using RulesByOptimizer = std::map<std::string_view, std::vector<Rule>>;

RulesByOptimizer find_by_optimizer() {
  RulesByOptimizer rules;
  for (size_t i = 0; i < std::size(entries); ++i) {
    const Description& description = entries[i].description;
    auto& of_class = rules[description.optimizer];
    const bool conditional = description.when[0].option;
    of_class.insert(conditional ? of_class.begin() : of_class.end(), static_cast<Rule>(i));
  }
  return rules;
}

const RulesByOptimizer& by_optimizer() {
  static const RulesByOptimizer rules = find_by_optimizer();
  return rules;
}

} // namespace

const Description& description_of(Rule rule) {
  return entries[static_cast<size_t>(rule)].description;
}

std::string_view name_of(Rule rule) {
  return entries[static_cast<size_t>(rule)].name;
}

std::optional<Rule> find_rule(std::string_view name) {
  for (size_t i = 0; i < std::size(entries); ++i) {
    if (entries[i].name == name) {
      return static_cast<Rule>(i);
    }
  }
  return std::nullopt;
}

std::vector<std::string_view> all_optimizers() {
  std::vector<std::string_view> names;
  for (const auto& [name, rules] : by_optimizer()) {
    names.push_back(name);
  }
  return names;
}

std::span<const Rule> rules_of(std::string_view optimizer) {
  const auto found = by_optimizer().find(optimizer);
  return found == by_optimizer().end() ? std::span<const Rule>() : found->second;
}

std::span<const HyperInfo> hypers_of(Rule rule) {
  const auto& hypers = description_of(rule).hypers;
  return {hypers, count(hypers, &HyperInfo::name)};
}

std::span<const SlotInfo> slots_of(Rule rule) {
  const auto& slots = description_of(rule).slots;
  return {slots, count(slots, &SlotInfo::name)};
}

std::span<const Condition> conditions_of(Rule rule) {
  const auto& when = description_of(rule).when;
  return {when, count(when, &Condition::option)};
}

size_t position_of(Rule rule, std::string_view hyper) {
  const auto hypers = hypers_of(rule);
  for (size_t i = 0; i < hypers.size(); ++i) {
    if (hypers[i].name == hyper) {
      return i;
    }
  }
  throw std::logic_error(
      "mlx_opt: " + std::string(name_of(rule)) + " has no hyperparameter " + std::string(hyper));
}

} // namespace mlx_opt
