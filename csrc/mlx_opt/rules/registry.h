// Compile-time properties of all rules: names and numbers of slots, hyperparameters and scalars.
#pragma once

#include <iterator>
#include <string_view>

#include "list.h"

namespace mlx_opt {

enum class Rule {
#define MLX_OPT_NAME(name) name,
  MLX_OPT_FOR_EACH_RULE(MLX_OPT_NAME) MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_NAME)
      MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_NAME)
#undef MLX_OPT_NAME
};

struct RuleInfo {
  std::string_view name;
  int slots; // state tensors of the parameter's shape
  int hypers;
  int scalars;
};

#define MLX_OPT_INFO(name)                                                \
  RuleInfo{                                                               \
      #name,                                                              \
      sizeof(MLX_OPT_LEVEL::name::Element) / sizeof(float) - 1,           \
      sizeof(MLX_OPT_LEVEL::name::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper), \
      sizeof(MLX_OPT_LEVEL::name::Scalars) / sizeof(float)},
inline constexpr RuleInfo rule_infos[] = {MLX_OPT_FOR_EACH_RULE(MLX_OPT_INFO)
                                              MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_INFO)};
#undef MLX_OPT_INFO

#define MLX_OPT_COUNT(name) +1
inline constexpr int elementwise_rules = MLX_OPT_FOR_EACH_RULE(MLX_OPT_COUNT);
#undef MLX_OPT_COUNT

/// True if the update of an element depends only on that element's gradient and state.
constexpr bool is_elementwise(Rule rule) {
  return static_cast<int>(rule) < elementwise_rules;
}

/// True if the rule's first pass sums over each tensor and its second updates the parameter.
constexpr bool has_two_passes(Rule rule) {
  return !is_elementwise(rule) && static_cast<size_t>(rule) < std::size(rule_infos);
}

/// The properties of a rule that is elementwise or has two passes.
constexpr const RuleInfo& info(Rule rule) {
  return rule_infos[static_cast<int>(rule)];
}

/// The maximum of a property over these rules.
constexpr int max_of(int RuleInfo::* count) {
  int max = 0;
  for (const RuleInfo& rule : rule_infos) {
    max = rule.*count > max ? rule.*count : max;
  }
  return max;
}

inline constexpr int max_slots = max_of(&RuleInfo::slots);
inline constexpr int max_hypers = max_of(&RuleInfo::hypers);
inline constexpr int max_scalars = max_of(&RuleInfo::scalars);

/// The maximum number of sums and rates of a rule of two passes.
inline constexpr int max_sums = 8;

struct TwoPassInfo {
  int sums;
  int rates;
};

#define MLX_OPT_INFO(name)                               \
  TwoPassInfo{                                           \
      sizeof(MLX_OPT_LEVEL::name::Sums) / sizeof(float), \
      sizeof(MLX_OPT_LEVEL::name::Rates) / sizeof(float)},
inline constexpr TwoPassInfo two_pass_infos[] = {MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_INFO)};
#undef MLX_OPT_INFO

/// The properties of a rule of two passes.
constexpr const TwoPassInfo& two_pass_info(Rule rule) {
  return two_pass_infos[static_cast<int>(rule) - elementwise_rules];
}

} // namespace mlx_opt
