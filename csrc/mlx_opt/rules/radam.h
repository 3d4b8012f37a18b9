// RAdam: Liu, Jiang, He, Chen, Liu, Gao and Han, arXiv:1908.03265, with PyTorch's threshold.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct RAdam {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, decoupled_weight_decay;
  };
  struct Scalars {
    float step_size;
    float adaptive, denominator; // v's weight in the denominator, 0 or 1, and what is added to it
    DecayRates decay;
  };
  struct Element {
    float w, m, v;
  };

  // How many gradients v averages: 2 / (1 - beta2) - 1 - 2 t beta2^t / (1 - beta2^t). In the first
  // steps this is the small difference of large numbers, so it comes from series there.
  MLX_OPT_FN float length(Hyper beta2, float step) {
    float x = -step * beta2.log;
    float q = beta2.one_minus;
    if (!(x < 1.0f)) {
      return 2.0f / q - 1.0f - 2.0f * step / exp_minus_one(x);
    }
    float y = x * x;
    float a = x * (1.0f / 6 - y * (1.0f / 360 - y * (1.0f / 15120 - y * (1.0f / 604800))));
    float b = fma(q, 863.0f / 30240, 3.0f / 80);
    b = fma(q, b, 19.0f / 360);
    b = fma(q, b, 1.0f / 12);
    b = q * fma(q, b, 1.0f / 6);
    return step + (b - step * a);
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.step_size = lr / one_minus_power(h.beta1, step);
    s.adaptive = 0.0f;
    s.denominator = 1.0f;
    float l = length(h.beta2, step);
    if (l > 5.0f) {
      float limit = 2.0f / h.beta2.one_minus - 1.0f;
      float variance = (l - 4.0f) / (limit - 4.0f) * ((l - 2.0f) / (limit - 2.0f)) * (limit / l);
      s.step_size *= square_root(variance * one_minus_power(h.beta2, step));
      s.adaptive = 1.0f;
      s.denominator = h.eps.value;
    }
    s.decay = decay_rates(h.decoupled_weight_decay.value != 0.0f, h.weight_decay, lr);
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * d);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (d * d));
    float u = s.step_size * m / (scaled(s.adaptive, square_root(v)) + s.denominator);
    return {e.w - (decay_of(e.w, s.decay.decoupled) + u), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "RAdam",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"decoupled_weight_decay", 0, Range::flag}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
