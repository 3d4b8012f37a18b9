// Muon's direction before it is orthogonalised: Jordan et al., kellerjordan.github.io/posts/muon.
// It replaces the parameter among the results.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Muon {
  struct Hypers {
    Hyper momentum, nesterov, weight_decay;
  };
  struct Scalars {
    float lr; // not used: the direction has no length
  };
  struct Element {
    float w, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars) {
    float d = g + scaled(h.weight_decay.value, e.w);
    float fresh = h.momentum.one_minus * d;
    float v = fma(h.momentum.value, e.v, fresh);
    return {h.nesterov.value != 0.0f ? fma(h.momentum.value, v, fresh) : v, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Muon",
      .hypers =
          {{"momentum", 0.95, Range::below_one},
           {"nesterov", 1, Range::flag},
           {"weight_decay", 0.01}},
      .slots = {{"v"}},
      .learning_rate = {Reads::never},
      .coupling = {Coupling::unless_zero, "weight_decay"},
  })
};

MLX_OPT_RULES_END
