// DiffGrad: Dubey, Chakraborty, Roy, Mukherjee, Singh and Chaudhuri, arXiv:1909.11015.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct DiffGrad {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay;
  };
  struct Scalars {
    float step_size;
  };
  struct Element {
    float w, m, v, previous;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float c2 = one_minus_power(h.beta2, step);
    return {lr * square_root(c2) / one_minus_power(h.beta1, step)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(h.weight_decay.value, e.w);
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * d);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (d * d));
    float friction = 1.0f + exp_of_minus(absolute(e.previous - d));
    float u = s.step_size * m / (friction * (square_root(v) + h.eps.value));
    return {e.w - u, m, v, d};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "DiffGrad",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}, {"previous"}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
