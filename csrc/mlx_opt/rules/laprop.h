// LaProp: Ziyin, Wang and Ueda, arXiv:2002.04839.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct LaProp {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay;
  };
  struct Scalars {
    float step_size, denominator_scale, decay;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.step_size = lr / one_minus_power(h.beta1, step);
    s.denominator_scale = 1.0f / square_root(one_minus_power(h.beta2, step));
    s.decay = lr * h.weight_decay.value;
    return s;
  }

  // The decay is that of the updated parameter.
  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float n = h.beta1.one_minus * g / fma(square_root(v), s.denominator_scale, h.eps.value);
    float m = fma(h.beta1.value, e.m, n);
    float d = s.step_size * m;
    return {e.w - (decay_of(e.w - d, s.decay) + d), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "LaProp",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-15, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
