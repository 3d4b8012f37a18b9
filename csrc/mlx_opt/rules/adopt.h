// ADOPT: Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa and Matsuo,
// arXiv:2411.02853.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct ADOPT {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, decouple, clip, clip_exponent;
  };
  struct Scalars {
    float lr, bound;
    DecayRates decay;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.lr = lr;
    s.bound = h.clip.value != 0.0f ? power(step - 1.0f, h.clip_exponent.value) : infinity();
    s.decay = decay_rates(h.decouple.value != 0.0f, h.weight_decay, lr);
    return s;
  }

  // In the first step v is unset: it divides by infinity, does not decay w, and makes v the
  // gradient's square. v loses its part by 1 - beta2: a beta2 of 0.9999 is off by more than 1e-8 in
  // float32.
  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float root = square_root(value_or(e.v, infinity()));
    float n = clamped(d / (root > h.eps.value ? root : h.eps.value), s.bound);
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * n);
    float before = value_or(e.v, d * d);
    float v = fma(h.beta2.one_minus, d * d, before - decay_of(before, h.beta2.one_minus));
    float decay = decay_of(e.w, root < infinity() ? s.decay.decoupled : 0.0f);
    return {e.w - (decay + s.lr * m), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "ADOPT",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.9999, Range::below_one},
           {"eps", 1e-6, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"decouple", 0, Range::flag},
           {"clip", 1, Range::flag},
           {"clip_exponent", 0.25, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .begin = Begin::unset, .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
