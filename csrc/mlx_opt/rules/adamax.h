// Adamax: Kingma and Ba, ICLR 2015, section 7.1, without bias correction.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Adamax {
  struct Hypers {
    Hyper beta1, beta2, eps;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = maximum(h.beta2.value * e.v, absolute(g));
    float w = e.w - s.lr * m / (v + h.eps.value);
    return {w, m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Adamax",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
  })
};

MLX_OPT_RULES_END
