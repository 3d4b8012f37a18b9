// RMSprop: Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct RMSprop {
  struct Hypers {
    Hyper alpha, eps;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float v = fma(h.alpha.value, e.v, h.alpha.one_minus * (g * g));
    float w = e.w - s.lr * g / (square_root(v) + h.eps.value);
    return {w, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "RMSprop",
      .hypers = {{"alpha", 0.99, Range::not_negative}, {"eps", 1e-8, Range::positive}},
      .slots = {{.name = "v", .codes = Codes::not_negative}},
  })
};

MLX_OPT_RULES_END
