// AdaBelief: Zhuang et al., NeurIPS 2020, arXiv:2010.07468.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct AdaBelief {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay;
  };
  struct Scalars {
    float step_size, denominator_scale, decay;
  };
  struct Element {
    float w, m, s;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars c;
    c.step_size = lr / one_minus_power(h.beta1, step);
    c.denominator_scale = 1.0f / square_root(one_minus_power(h.beta2, step));
    c.decay = lr * h.weight_decay.value;
    return c;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars c) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float surprise = g - m;
    float s = fma(h.beta2.value, e.s, h.beta2.one_minus * (surprise * surprise)) + h.eps.value;
    float d = c.step_size * m / fma(square_root(s), c.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, c.decay) + d), m, s};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdaBelief",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-16, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative}},
      .slots = {{"m"}, {.name = "s", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
