// Lion: Chen et al., arXiv:2302.06675.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Lion {
  struct Hypers {
    Hyper beta1, beta2;
    WeightDecay weight_decay;
  };
  struct Scalars {
    float lr;
    DecayRates decay;
  };
  struct Element {
    float w, m;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    h.weight_decay.rate.value = maximum(h.weight_decay.rate.value, 0.0f); // none if negative
    return {lr, decay_rates(h.weight_decay, lr)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float c = fma(h.beta1.value, e.m, h.beta1.one_minus * d);
    float m = fma(h.beta2.value, e.m, h.beta2.one_minus * d);
    float u = s.lr * sign(c);
    return {e.w - (decay_of(e.w, u, h.weight_decay, s.decay) + u), m};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Lion",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.99, Range::below_one},
           {"weight_decay", 0.0},
           {"weight_decay_kind", 1, Range::decay_kind},
           {"max_learning_rate", 0.0, Range::not_negative},
           {"cautious_weight_decay", 0, Range::flag}},
      .slots = {{"m"}},
  })
};

MLX_OPT_RULES_END
