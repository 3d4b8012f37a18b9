// Adam-atan2: Everett et al., arXiv:2407.05872.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct AdamAtan2 {
  struct Hypers {
    Hyper beta1, beta2, weight_decay, a, b;
  };
  struct Scalars {
    float step_size, average_scale, denominator_scale, decay;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.step_size = lr * h.a.value;
    s.average_scale = 1.0f / one_minus_power(h.beta1, step);
    s.denominator_scale = h.b.value / square_root(one_minus_power(h.beta2, step));
    s.decay = lr * h.weight_decay.value;
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float d = s.step_size * angle(s.average_scale * m, s.denominator_scale * square_root(v));
    return {e.w - (decay_of(e.w, s.decay) + d), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdamAtan2",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.99, Range::below_one},
           {"weight_decay", 0.0, Range::not_negative},
           {"a", 1.27, Range::not_negative},
           {"b", 1.0, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
