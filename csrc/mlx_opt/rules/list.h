// The names of all rules. A new rule is one header, one line here and its include in registry.h.
#pragma once

// Those that update each element from its own gradient and state alone.
#define MLX_OPT_FOR_EACH_RULE(RULE) \
  RULE(AdaBelief)                   \
  RULE(AdaDelta)                    \
  RULE(Adagrad)                     \
  RULE(AdamAMSGrad)                 \
  RULE(AdamAtan2)                   \
  RULE(Adamax)                      \
  RULE(AdamW)                       \
  RULE(AdamWVariant)                \
  RULE(AdamWScheduleFree)           \
  RULE(Adan)                        \
  RULE(AdEMAMix)                    \
  RULE(ADOPT)                       \
  RULE(DAdaptAdam)                  \
  RULE(DiffGrad)                    \
  RULE(GPAAdamW)                    \
  RULE(LaProp)                      \
  RULE(Lion)                        \
  RULE(MADGRAD)                     \
  RULE(Momentum)                    \
  RULE(Muon)                        \
  RULE(NAdam)                       \
  RULE(Nesterov)                    \
  RULE(Prodigy)                     \
  RULE(QHAdam)                      \
  RULE(RAdam)                       \
  RULE(RAdamScheduleFree)           \
  RULE(RMSprop)                     \
  RULE(SGD)                         \
  RULE(SGDScheduleFree)             \
  RULE(SignSGD)                     \
  RULE(Signum)                      \
  RULE(SimplifiedAdEMAMix)          \
  RULE(Yogi)

// Of these rules, those whose numbers depend on sums over all tensors, which are taken before the
// step.
#define MLX_OPT_FOR_EACH_SUMMING_RULE(RULE) RULE(DAdaptAdam) RULE(Prodigy)

// Those of two passes over each tensor: the first sums up over the tensor, and may take the state's
// step; the second updates the parameter with what the sums give.
#define MLX_OPT_FOR_EACH_TWO_PASS_RULE(RULE) \
  RULE(Lamb)                                 \
  RULE(AdamH)                                \
  RULE(LARS)                                 \
  RULE(StableAdamW)                          \
  RULE(CautiousAdamW)                        \
  RULE(CautiousLion)                         \
  RULE(MARS)                                 \
  RULE(MARSLion)

// Those with drivers of their own.
#define MLX_OPT_FOR_EACH_TENSOR_RULE(RULE) RULE(Adafactor)

// Those without kernels, whose steps are compositions.
#define MLX_OPT_FOR_EACH_COMPOSED_RULE(RULE) RULE(AdaMuon) RULE(NorMuon)

namespace mlx_opt {

enum class Rule {
#define MLX_OPT_NAME(name) name,
  MLX_OPT_FOR_EACH_RULE(MLX_OPT_NAME) MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_NAME)
      MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_NAME) MLX_OPT_FOR_EACH_COMPOSED_RULE(MLX_OPT_NAME)
#undef MLX_OPT_NAME
};

#define MLX_OPT_COUNT(name) +1
inline constexpr int elementwise_rules = MLX_OPT_FOR_EACH_RULE(MLX_OPT_COUNT);
inline constexpr int two_pass_rules = MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_COUNT);
#undef MLX_OPT_COUNT

/// True if the update of an element depends only on that element's gradient and state.
constexpr bool is_elementwise(Rule rule) {
  return static_cast<int>(rule) < elementwise_rules;
}

/// True if the numbers that the rule keeps depend on sums over all tensors.
constexpr bool sums_over_all(Rule rule) {
#define MLX_OPT_IS(name) rule == Rule::name ||
  return MLX_OPT_FOR_EACH_SUMMING_RULE(MLX_OPT_IS) false;
#undef MLX_OPT_IS
}

/// True if the rule's first pass sums over each tensor and its second updates the parameter.
constexpr bool has_two_passes(Rule rule) {
  return !is_elementwise(rule) && static_cast<int>(rule) < elementwise_rules + two_pass_rules;
}

/// The maximum number of sums and rates of a rule of two passes, and of sums over all tensors.
inline constexpr int max_sums = 8;

} // namespace mlx_opt
