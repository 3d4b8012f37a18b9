// AdaDelta: Zeiler, arXiv:1212.5701, with a learning rate.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct AdaDelta {
  struct Hypers {
    Hyper rho, eps;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w, v, u;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float v = fma(h.rho.value, e.v, h.rho.one_minus * (g * g));
    float d = square_root(e.u + h.eps.value) / square_root(v + h.eps.value) * g;
    float u = fma(h.rho.value, e.u, h.rho.one_minus * (d * d));
    float w = fma(-s.lr, d, e.w);
    return {w, v, u};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdaDelta",
      .hypers = {{"rho", 0.9, Range::not_negative}, {"eps", 1e-6, Range::positive}},
      .slots =
          {{.name = "v", .codes = Codes::not_negative},
           {.name = "u", .follows = true, .codes = Codes::not_negative}},
  })
};

MLX_OPT_RULES_END
