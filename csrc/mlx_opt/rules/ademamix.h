// AdEMAMix: Pagliardini, Ablin and Grangier, arXiv:2409.03137.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct AdEMAMix {
  struct Hypers {
    Hyper beta1, beta2, beta3, alpha, eps, weight_decay, alpha_warmup, beta3_warmup;
  };
  struct Scalars {
    float fast, slow; // the learning rate times the weights of m1 and m2 in the update
    float beta3, one_minus_beta3;
    float denominator_scale, decay;
  };
  struct Element {
    float w, m1, m2, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.fast = lr / one_minus_power(h.beta1, step);
    s.slow = lr * h.alpha.value * progress(step, h.alpha_warmup);
    s.denominator_scale = 1.0f / square_root(one_minus_power(h.beta2, step));
    s.decay = lr * h.weight_decay.value;
    s.beta3 = h.beta3.value;
    s.one_minus_beta3 = h.beta3.one_minus;
    float done = progress(step, h.beta3_warmup);
    if (done < 1.0f) { // the half-life grows by the same amount each step
      s.one_minus_beta3 = -exp_minus_one(log_between(h.beta1, h.beta3, done));
      s.beta3 = 1.0f - s.one_minus_beta3;
    }
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m1 = fma(h.beta1.value, e.m1, h.beta1.one_minus * g);
    float m2 = fma(s.beta3, e.m2, s.one_minus_beta3 * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float d = fma(s.slow, m2, s.fast * m1) / fma(square_root(v), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay) + d), m1, m2, v};
  }

  // In bfloat16 m2 could not move: its spacing is many times 1 - beta3.
  MLX_OPT_DESCRIBE({
      .optimizer = "AdEMAMix",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"betas[2]", 0.9999, Range::below_one},
           {"alpha", 2.0, Range::not_negative},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"alpha_warmup", 0.0, Range::not_negative},
           {"beta3_warmup", 0.0, Range::not_negative}},
      .slots =
          {{"m1"},
           {.name = "m2", .format = Format::float32},
           {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
