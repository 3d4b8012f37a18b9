// MARS: Yuan, Liu, Wu, Zhou and Gu, arXiv:2411.10438. Rules of two passes over each tensor.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// With the moments of Adam and decoupled decay.
struct MARS {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, gamma;
  };
  struct Scalars {
    float correction; // the weight of the gradient's difference
    float step_size, denominator_scale, decay;
  };
  struct Element {
    float w, m, v, previous;
  };
  struct Sums {
    float squares; // of the corrected gradient
  };
  struct Rates {
    float scale; // of the corrected gradient, whose norm is at most 1
  };
  enum : unsigned { first_pass_reads = 8 }; // the previous gradient

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    return {
        h.gamma.value * (h.beta1.value / h.beta1.one_minus),
        lr / one_minus_power(h.beta1, step),
        1.0f / square_root(one_minus_power(h.beta2, step)),
        lr * h.weight_decay.value};
  }

  MLX_OPT_FN float corrected(float previous, float g, float correction) {
    return fma(correction, g - value_or(previous, g), g);
  }

  MLX_OPT_FN float scale_to_one(float squares) {
    return squares > 1.0f ? 1.0f / square_root(squares) : 1.0f;
  }

  MLX_OPT_FN Sums sums(Element e, float g, Hypers, Scalars s) {
    float c = corrected(e.previous, g, s.correction);
    return {c * c};
  }

  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars) {
    return {scale_to_one(sums.squares)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s, Rates r) {
    float c = r.scale * corrected(e.previous, g, s.correction);
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * c);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (c * c));
    float u = s.step_size * m / fma(square_root(v), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay) + u), m, v, g};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "MARS",
      .hypers =
          {{"betas[0]", 0.95, Range::below_one},
           {"betas[1]", 0.99, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"gamma", 0.025, Range::not_negative}},
      .slots =
          {{"m"},
           {.name = "v", .codes = Codes::not_negative},
           {.name = "previous", .begin = Begin::unset}},
      .step = {Reads::always},
  })
};

// With the sign of one moment.
struct MARSLion {
  struct Hypers {
    Hyper beta, weight_decay, gamma;
  };
  struct Scalars {
    float lr, correction, decay;
  };
  struct Element {
    float w, m, previous;
  };
  using Sums = MARS::Sums;
  using Rates = MARS::Rates;
  enum : unsigned { first_pass_reads = 4 }; // the previous gradient

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, h.gamma.value * (h.beta.value / h.beta.one_minus), lr * h.weight_decay.value};
  }

  MLX_OPT_FN Sums sums(Element e, float g, Hypers, Scalars s) {
    float c = MARS::corrected(e.previous, g, s.correction);
    return {c * c};
  }

  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars) {
    return {MARS::scale_to_one(sums.squares)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s, Rates r) {
    float c = r.scale * MARS::corrected(e.previous, g, s.correction);
    float m = fma(h.beta.value, e.m, h.beta.one_minus * c);
    return {e.w - (decay_of(e.w, s.decay) + s.lr * sign(m)), m, g};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "MARSLion",
      .hypers =
          {{"beta", 0.95, Range::below_one},
           {"weight_decay", 0.0, Range::not_negative},
           {"gamma", 0.025, Range::not_negative}},
      .slots = {{"m"}, {.name = "previous", .begin = Begin::unset}},
  })
};

MLX_OPT_RULES_END
