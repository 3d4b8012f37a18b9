// Lion: Chen et al., arXiv:2302.06675.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Lion {
  struct Hypers {
    Hyper beta1, beta2, weight_decay;
  };
  struct Scalars {
    float lr, decay;
  };
  struct Element {
    float w, m;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, lr * maximum(h.weight_decay.value, 0.0f)}; // none if negative
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float c = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float m = fma(h.beta2.value, e.m, h.beta2.one_minus * g);
    return {e.w - (decay_of(e.w, s.decay) + s.lr * sign(c)), m};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Lion",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.99, Range::below_one},
           {"weight_decay", 0.0}},
      .slots = {{"m"}},
  })
};

MLX_OPT_RULES_END
