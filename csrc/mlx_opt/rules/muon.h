// Muon's direction before it is orthogonalised: Jordan et al., kellerjordan.github.io/posts/muon.
// It replaces the parameter among the results.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Muon {
  struct Hypers {
    Hyper momentum, nesterov;
    WeightDecay weight_decay;
  };
  struct Scalars {
    DecayRates decay; // that which is added to the gradient; the descent has the other
  };
  struct Element {
    float w, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float, float) {
    return {decay_rates(h.weight_decay, 0.0f)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float fresh = h.momentum.one_minus * d;
    float v = fma(h.momentum.value, e.v, fresh);
    return {h.nesterov.value != 0.0f ? fma(h.momentum.value, v, fresh) : v, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Muon",
      .hypers =
          {{"momentum", 0.95, Range::below_one},
           {"nesterov", 1, Range::flag},
           {"weight_decay", 0.01},
           {"weight_decay_kind", 0, Range::decay_kind},
           {"max_learning_rate", 0.0, Range::not_negative},
           {"cautious_weight_decay", 0, Range::flag}},
      .slots = {{.name = "v", .codes = Codes::none}},
      .learning_rate = {Reads::never},
      .coupling = {Coupling::unless_zero, "weight_decay", "weight_decay_kind"},
  })
};

MLX_OPT_RULES_END
