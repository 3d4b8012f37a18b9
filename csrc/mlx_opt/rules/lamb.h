// LAMB: You et al., ICLR 2020, arXiv:1904.00962. A rule of two passes over each tensor.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Lamb {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay;
  };
  struct Scalars {
    float lr, moment_scale, denominator_scale;
  };
  struct Element {
    float w, m, v;
  };
  struct Sums {
    float w, u; // of the squares of the parameter and of the direction
  };
  struct Rates {
    float step_size;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float c2 = one_minus_power(h.beta2, step);
    return {lr, 1.0f / one_minus_power(h.beta1, step), 1.0f / square_root(c2)};
  }

  MLX_OPT_FN Element update_state(Element e, float g, Hypers h, Scalars) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    return {e.w, m, v};
  }

  // The direction of the update, which the trust ratio scales.
  MLX_OPT_FN float direction(Element e, Hypers h, Scalars s) {
    float d = s.moment_scale * e.m / fma(square_root(e.v), s.denominator_scale, h.eps.value);
    return fma(h.weight_decay.value, e.w, d);
  }

  MLX_OPT_FN Sums sums(Element e, Hypers h, Scalars s) {
    float u = direction(e, h, s);
    return {e.w * e.w, u * u};
  }

  // Once for each tensor, from the sums over its elements.
  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars s) {
    bool both = sums.w > 0.0f && sums.u > 0.0f;
    return {both ? s.lr * (square_root(sums.w) / square_root(sums.u)) : s.lr};
  }

  MLX_OPT_FN float update(Element e, Hypers h, Scalars s, Rates r) {
    return fma(-r.step_size, direction(e, h, s), e.w);
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Lamb",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-6, Range::not_negative},
           {"weight_decay", 0.01, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
