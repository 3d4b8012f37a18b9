// LARS: You, Gitman and Ginsburg, arXiv:1708.03888. A rule of two passes over each tensor.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct LARS {
  struct Hypers {
    Hyper momentum, weight_decay, trust_coefficient, eps, nesterov;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w, v;
  };
  struct Sums {
    float w, g; // of the squares of the parameter and of the gradient
  };
  struct Rates {
    float trust;
  };
  enum : unsigned { first_pass_reads = 1 }; // the parameter

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Sums sums(Element e, float g, Hypers, Scalars) {
    return {e.w * e.w, g * g};
  }

  MLX_OPT_FN Rates rates(Sums sums, Hypers h, Scalars) {
    float w = square_root(sums.w);
    float whole = fma(h.weight_decay.value, w, square_root(sums.g)) + h.eps.value;
    bool both = w > 0.0f && whole > 0.0f;
    return {both ? h.trust_coefficient.value * (w / whole) : 1.0f};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s, Rates r) {
    float d = r.trust * (g + scaled(h.weight_decay.value, e.w));
    float v = fma(h.momentum.value, e.v, d);
    float u = h.nesterov.value != 0.0f ? fma(h.momentum.value, v, d) : v;
    return {fma(-s.lr, u, e.w), v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "LARS",
      .hypers =
          {{"momentum", 0.9, Range::below_one},
           {"weight_decay", 0.0, Range::not_negative},
           {"trust_coefficient", 0.001, Range::not_negative},
           {"eps", 1e-8, Range::not_negative},
           {"nesterov", 0, Range::flag}},
      .slots = {{"v"}},
  })
};

MLX_OPT_RULES_END
