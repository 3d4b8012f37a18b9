// SimplifiedAdEMAMix: Morwani, Vyas, Zhang and Kakade, arXiv:2502.02431.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct SimplifiedAdEMAMix {
  struct Hypers {
    Hyper beta1, beta2, alpha, eps, weight_decay, beta1_warmup, min_beta1;
  };
  struct Scalars {
    float lr, gradient; // gradient: the learning rate times what it weighs against m
    float beta1;
    float denominator_scale, decay;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.lr = lr;
    s.gradient = lr * h.alpha.value;
    s.beta1 = h.beta1.value;
    float done = progress(step, h.beta1_warmup);
    if (done < 1.0f) {
      s.beta1 = 1.0f + exp_minus_one(log_between(h.min_beta1, h.beta1, done));
    }
    s.denominator_scale = 1.0f / square_root(one_minus_power(h.beta2, step));
    s.decay = lr * h.weight_decay.value;
    return s;
  }

  // m is a sum, in which a gradient weighs 1.
  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(s.beta1, e.m, g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float d = fma(s.lr, m, s.gradient * g) / fma(square_root(v), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay) + d), m, v};
  }

  // In bfloat16 m would lose the gradients that it is many times larger than.
  MLX_OPT_DESCRIBE({
      .optimizer = "SimplifiedAdEMAMix",
      .hypers =
          {{"betas[0]", 0.99, Range::below_one},
           {"betas[1]", 0.95, Range::below_one},
           {"alpha", 0.0, Range::not_negative},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"beta1_warmup", 0.0, Range::not_negative},
           {"min_beta1", 0.9, Range::below_one}},
      .slots =
          {{.name = "m", .format = Format::float32}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
