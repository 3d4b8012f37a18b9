// Adam: Kingma and Ba, ICLR 2015. AdamW: Loshchilov and Hutter, ICLR 2019.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct AdamW {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, bias_correction;
  };
  struct Scalars {
    float step_size, denominator_scale, decay;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    bool correct = h.bias_correction.value != 0.0f;
    float c1 = correct ? one_minus_power(h.beta1, step) : 1.0f;
    float c2 = correct ? one_minus_power(h.beta2, step) : 1.0f;
    return {lr / c1, 1.0f / square_root(c2), lr * h.weight_decay.value};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float d = s.step_size * m / fma(square_root(v), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay) + d), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdamW",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.01},
           {"bias_correction", 0, Range::flag}},
      .slots = {{"m"}, {"v"}},
      .when = {{"nesterov", Setting::off}, {"cautious_weight_decay", Setting::off}},
      .step = {Reads::if_set, "bias_correction"},
  })
};

// With a momentum that looks one step ahead (Dozat, ICLR 2016 workshop), and with decay only where
// the update shrinks the parameter too (Chen et al., arXiv:2510.12402), or one of these.
struct AdamWVariant {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, bias_correction, nesterov, cautious_weight_decay;
  };
  struct Scalars {
    float average, gradient; // the weights of m and of the gradient in the update
    float step_size, denominator_scale, decay;
  };
  using Element = AdamW::Element;

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    bool correct = h.bias_correction.value != 0.0f;
    bool nesterov = h.nesterov.value != 0.0f;
    float c1 = correct ? one_minus_power(h.beta1, step) : 1.0f;
    float c2 = correct ? one_minus_power(h.beta2, step) : 1.0f;
    return {
        nesterov ? h.beta1.value : 1.0f,
        nesterov ? h.beta1.one_minus : 0.0f,
        lr / c1,
        1.0f / square_root(c2),
        lr * h.weight_decay.value};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float average = fma(s.average, m, scaled(s.gradient, g));
    float d = s.step_size * average / fma(square_root(v), s.denominator_scale, h.eps.value);
    bool decays = h.cautious_weight_decay.value == 0.0f || d * e.w >= 0.0f;
    return {e.w - ((decays ? decay_of(e.w, s.decay) : 0.0f) + d), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdamW",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.01},
           {"bias_correction", 0, Range::flag},
           {"nesterov", 0, Range::flag},
           {"cautious_weight_decay", 0, Range::flag}},
      .slots = {{"m"}, {"v"}},
      .step = {Reads::if_set, "bias_correction"},
  })
};

MLX_OPT_RULES_END
