// SignSGD: Bernstein et al., arXiv:1802.04434, with decoupled weight decay.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct SignSGD {
  struct Hypers {
    Hyper weight_decay;
  };
  struct Scalars {
    float lr, decay;
  };
  struct Element {
    float w;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, lr * h.weight_decay.value};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers, Scalars s) {
    return {e.w - (decay_of(e.w, s.decay) + s.lr * sign(g))};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "SignSGD",
      .hypers = {{"weight_decay", 0.0, Range::not_negative}},
  })
};

MLX_OPT_RULES_END
