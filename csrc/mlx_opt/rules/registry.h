// What the library knows of a rule besides its arithmetic.
#pragma once

#include <iterator>
#include <optional>
#include <string_view>

#include "list.h"

namespace mlx_opt {

enum class Rule {
#define MLX_OPT_NAME(name) name,
  MLX_OPT_FOR_EACH_RULE(MLX_OPT_NAME)
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

constexpr const RuleInfo& info(Rule rule) {
  return rule_infos[static_cast<int>(rule)];
}

/// The rule of that name, if there is one.
constexpr std::optional<Rule> find_rule(std::string_view name) {
  for (size_t i = 0; i < std::size(rule_infos); ++i) {
    if (rule_infos[i].name == name) {
      return static_cast<Rule>(i);
    }
  }
  return std::nullopt;
}

/// The most of each that any rule has.
inline constexpr int max_moments = 2;
inline constexpr int max_hypers = 8;
inline constexpr int max_scalars = 8;

static_assert([] {
  for (const auto& rule : rule_infos) {
    if (rule.moments > max_moments || rule.hypers > max_hypers || rule.scalars > max_scalars) {
      return false;
    }
  }
  return true;
}());

} // namespace mlx_opt
