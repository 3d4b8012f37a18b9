// Stochastic gradient descent: plain, with momentum (Polyak, 1964), and with Nesterov's momentum
// (Sutskever et al., ICML 2013).
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct SGD {
  struct Hypers {
    Hyper weight_decay;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    return {fma(-s.lr, g + scaled(h.weight_decay.value, e.w), e.w)};
  }
};

struct Momentum {
  struct Hypers {
    Hyper momentum, dampening, weight_decay;
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
    float d = g + scaled(h.weight_decay.value, e.w);
    float v = fma(h.momentum.value, e.v, h.dampening.complement * d);
    return {fma(-s.lr, v, e.w), v};
  }
};

struct Nesterov {
  using Hypers = Momentum::Hypers;
  using Scalars = Momentum::Scalars;
  using Element = Momentum::Element;

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(h.weight_decay.value, e.w);
    float v = fma(h.momentum.value, e.v, d);
    return {fma(-s.lr, fma(h.momentum.value, v, d), e.w), v};
  }
};

MLX_OPT_RULES_END
