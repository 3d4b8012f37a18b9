// Signum: Bernstein et al., arXiv:1802.04434, with decoupled weight decay.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Signum {
  struct Hypers {
    Hyper beta, weight_decay;
  };
  struct Scalars {
    float lr, decay;
  };
  struct Element {
    float w, m;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, lr * h.weight_decay.value};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta.value, e.m, h.beta.one_minus * g);
    return {e.w - (decay_of(e.w, s.decay) + s.lr * sign(m)), m};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Signum",
      .hypers = {{"beta", 0.9, Range::below_one}, {"weight_decay", 0.0, Range::not_negative}},
      .slots = {{"m"}},
  })
};

MLX_OPT_RULES_END
