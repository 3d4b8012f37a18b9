// The rules themselves, and the numbers of their slots, hyperparameters and scalars. Whatever
// includes this is compiled again when a rule changes.
#pragma once

#include <iterator>
#include <string_view>

#include "adabelief.h"
#include "adadelta.h"
#include "adafactor.h"
#include "adagrad.h"
#include "adam_atan2.h"
#include "adamax.h"
#include "adamh.h"
#include "adamw.h"
#include "adan.h"
#include "ademamix.h"
#include "adopt.h"
#include "d_adaptation.h"
#include "diffgrad.h"
#include "lamb.h"
#include "laprop.h"
#include "lars.h"
#include "lion.h"
#include "list.h"
#include "madgrad.h"
#include "mars.h"
#include "muon.h"
#include "nadam.h"
#include "passes.h"
#include "qhadam.h"
#include "radam.h"
#include "rmsprop.h"
#include "schedule_free.h"
#include "sgd.h"
#include "signsgd.h"
#include "signum.h"
#include "simplified_ademamix.h"
#include "stable_adamw.h"
#include "yogi.h"

namespace mlx_opt {

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

// The stages around a rule, of masters and averages, read and write the parameter by its name.
#define MLX_OPT_NAMES_PARAMETER(name)                    \
  static_assert(                                         \
      requires(MLX_OPT_LEVEL::name::Element e) { e.w; }, \
      #name "::Element: the parameter is a member w");
MLX_OPT_FOR_EACH_RULE(MLX_OPT_NAMES_PARAMETER)
MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_NAMES_PARAMETER)
#undef MLX_OPT_NAMES_PARAMETER

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

inline constexpr int max_scalars = max_of(&RuleInfo::scalars);

/// Of a rule that sums over all tensors.
struct SumInfo {
  Rule rule;
  int sums;
  unsigned reads; // a bit for each field of the element that the sums read, the parameter's lowest
};

#define MLX_OPT_INFO(name)                                      \
  SumInfo{                                                      \
      Rule::name,                                               \
      sizeof(MLX_OPT_LEVEL::name::Sums<float>) / sizeof(float), \
      MLX_OPT_LEVEL::name::sums_read},
inline constexpr SumInfo sum_infos[] = {MLX_OPT_FOR_EACH_SUMMING_RULE(MLX_OPT_INFO)};
#undef MLX_OPT_INFO

constexpr const SumInfo& sum_info(Rule rule) {
  const SumInfo* found = sum_infos;
  while (found->rule != rule) {
    ++found;
  }
  return *found;
}

struct TwoPassInfo {
  int sums;
  int rates;
  bool updates_state_first;
  bool reads_gradient_again;
};

#define MLX_OPT_INFO(name)                                               \
  TwoPassInfo{                                                           \
      sizeof(MLX_OPT_LEVEL::name::Sums) / sizeof(float),                 \
      sizeof(MLX_OPT_LEVEL::name::Rates) / sizeof(float),                \
      MLX_OPT_LEVEL::FirstPass<MLX_OPT_LEVEL::name>::updates_state != 0, \
      MLX_OPT_LEVEL::SecondPass<MLX_OPT_LEVEL::name>::reads_gradient != 0},
inline constexpr TwoPassInfo two_pass_infos[] = {MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_INFO)};
#undef MLX_OPT_INFO

/// The properties of a rule of two passes; see passes.h.
constexpr const TwoPassInfo& two_pass_info(Rule rule) {
  return two_pass_infos[static_cast<int>(rule) - elementwise_rules];
}

} // namespace mlx_opt
