// Yogi: Zaheer, Reddi, Sachan, Kale and Kumar, NeurIPS 2018.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Yogi {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, initial_accumulator;
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

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float square = g * g;
    float before = value_or(e.v, h.initial_accumulator.value);
    float v = fma(-h.beta2.one_minus, sign(before - square) * square, before);
    float d = s.step_size * m / fma(square_root(v), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay) + d), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Yogi",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-3, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"initial_accumulator", 1e-6, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .begin = Begin::unset, .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
