// What the library knows of a rule besides its arithmetic.
#pragma once

#include <string_view>

#include "list.h"

namespace mlx_opt {

enum class Rule {
#define MLX_OPT_NAME(name) name,
  MLX_OPT_FOR_EACH_RULE(MLX_OPT_NAME) MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_NAME)
#undef MLX_OPT_NAME
};

struct RuleInfo {
  std::string_view name;
  int moments; // state tensors of the parameter's shape
  int hypers;
  int scalars;
};

inline constexpr RuleInfo rule_infos[] = {
#define MLX_OPT_INFO(name)                                                \
  RuleInfo{                                                               \
      #name,                                                              \
      sizeof(MLX_OPT_LEVEL::name::Element) / sizeof(float) - 1,           \
      sizeof(MLX_OPT_LEVEL::name::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper), \
      sizeof(MLX_OPT_LEVEL::name::Scalars) / sizeof(float)},
    MLX_OPT_FOR_EACH_RULE(MLX_OPT_INFO)
#undef MLX_OPT_INFO
};

/// True if the rule updates each element from its own gradient and state alone.
constexpr bool is_elementwise(Rule rule) {
  return static_cast<size_t>(rule) < sizeof(rule_infos) / sizeof(RuleInfo);
}

/// Of an elementwise rule.
constexpr const RuleInfo& info(Rule rule) {
  return rule_infos[static_cast<int>(rule)];
}

/// The most of each that any rule has.
constexpr int most(int RuleInfo::* count) {
  int most = 0;
  for (const RuleInfo& rule : rule_infos) {
    most = rule.*count > most ? rule.*count : most;
  }
  return most;
}

inline constexpr int max_moments = most(&RuleInfo::moments);
inline constexpr int max_hypers = most(&RuleInfo::hypers);
inline constexpr int max_scalars = most(&RuleInfo::scalars);

} // namespace mlx_opt
