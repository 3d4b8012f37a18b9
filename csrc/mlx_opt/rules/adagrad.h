// Adagrad: Duchi, Hazan and Singer, JMLR 2011.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Adagrad {
  struct Hypers {
    Hyper eps;
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
    float v = fma(g, g, e.v);
    float w = e.w - s.lr * g / (square_root(v) + h.eps.value);
    return {w, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Adagrad",
      .hypers = {{"eps", 1e-8, Range::positive}},
      .slots = {{.name = "v", .codes = Codes::none}},
  })
};

MLX_OPT_RULES_END
