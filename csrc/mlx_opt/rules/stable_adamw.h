// StableAdamW: Wortsman et al., NeurIPS 2023, arXiv:2304.13013. A rule of two passes over each
// tensor.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct StableAdamW {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay;
  };
  struct Scalars {
    float lr, fresh_m, fresh_v; // fresh: the part of the gradient in a moment
  };
  struct Element {
    float w, m, v;
  };
  struct Sums {
    float squares, elements; // of the gradient over the root of v
  };
  struct Rates {
    float step_size;
  };
  enum : unsigned { first_pass_reads = 2 | 4 }; // m and v

  // Betas that correct the bias of the moments: beta (1 - beta^(t-1)) / (1 - beta^t).
  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    return {
        lr,
        h.beta1.one_minus / one_minus_power(h.beta1, step),
        h.beta2.one_minus / one_minus_power(h.beta2, step)};
  }

  MLX_OPT_FN Element update_state(Element e, float g, Hypers, Scalars s) {
    float m = fma(1.0f - s.fresh_m, e.m, s.fresh_m * g);
    float v = fma(1.0f - s.fresh_v, e.v, s.fresh_v * (g * g));
    return {e.w, m, v};
  }

  MLX_OPT_FN Sums sums(Element e, float g, Hypers h, Scalars) {
    float ratio = g / maximum(square_root(e.v), h.eps.value);
    return {ratio * ratio, 1.0f};
  }

  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars s) {
    float rms = square_root(sums.squares / maximum(sums.elements, 1.0f));
    return {s.lr / maximum(rms, 1.0f)};
  }

  MLX_OPT_FN float update(Element e, Hypers h, Scalars, Rates r) {
    float d = r.step_size * e.m / (square_root(e.v) + h.eps.value);
    return e.w - (decay_of(e.w, r.step_size * h.weight_decay.value) + d);
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "StableAdamW",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.99, Range::below_one},
           {"eps", 1e-6, Range::positive},
           {"weight_decay", 0.01, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .format = Format::float32}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
