// Adan: Xie, Zhou, Li, Lin and Yan, arXiv:2208.06677.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Adan {
  struct Hypers {
    Hyper beta1, beta2, beta3, eps, weight_decay, no_prox;
  };
  struct Scalars {
    float gradients, differences; // the learning rate times what m and v weigh in the update
    float denominator_scale, decay;
  };
  struct Element {
    float w, m, v, n, previous;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.gradients = lr / one_minus_power(h.beta1, step);
    s.differences = lr * h.beta2.value / one_minus_power(h.beta2, step);
    s.denominator_scale = 1.0f / square_root(one_minus_power(h.beta3, step));
    s.decay = lr * h.weight_decay.value;
    if (h.no_prox.value == 0.0f) { // (w - d) / (1 + decay), with the division in the scalars
      float kept = 1.0f / (1.0f + s.decay);
      s.gradients *= kept;
      s.differences *= kept;
      s.decay *= kept;
    }
    return s;
  }

  // The first step has no previous gradient, and no difference.
  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float difference = g - value_or(e.previous, g);
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * difference);
    float ahead = fma(h.beta2.value, difference, g);
    float n = fma(h.beta3.value, e.n, h.beta3.one_minus * (ahead * ahead));
    float d = fma(s.differences, v, s.gradients * m) /
              fma(square_root(n), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay) + d), m, v, n, g};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Adan",
      .hypers =
          {{"betas[0]", 0.98, Range::below_one},
           {"betas[1]", 0.92, Range::below_one},
           {"betas[2]", 0.99, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"no_prox", 0, Range::flag}},
      .slots =
          {{"m"},
           {"v"},
           {.name = "n", .codes = Codes::not_negative},
           {.name = "previous", .begin = Begin::unset}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
