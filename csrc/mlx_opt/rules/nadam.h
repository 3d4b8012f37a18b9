// NAdam: Dozat, ICLR 2016 workshop, with its warm-up of the momentum.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct NAdam {
  template <typename Number>
  struct Numbers {
    Number beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay;
    Number mu_product; // of the momenta of all steps so far
  };
  using Hypers = Numbers<Hyper>;
  template <typename Number>
  struct Kept {
    Number mu_product;
  };
  struct Scalars {
    float gradient, average; // the learning rate times what g and m weigh in the update
    float denominator_scale;
    DecayRates decay;
  };
  struct Element {
    float w, m, v;
  };

  template <typename Number>
  MLX_OPT_FN Number momentum(Number beta1, Number decay, Number step) {
    return beta1 * (Number(1.0f) - Number(0.5f) * power(Number(0.96f), step * decay));
  }

  template <typename Number>
  MLX_OPT_FN Kept<Number> next(Numbers<Number> h, Number, Number step) {
    return {h.mu_product * momentum(h.beta1, h.momentum_decay, step)};
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float now = momentum(h.beta1.value, h.momentum_decay.value, step);
    float following = momentum(h.beta1.value, h.momentum_decay.value, step + 1.0f);
    Scalars s;
    s.gradient = lr * (1.0f - now) / h.mu_product.one_minus;
    s.average = lr * following / (1.0f - h.mu_product.value * following);
    s.denominator_scale = 1.0f / square_root(one_minus_power(h.beta2, step));
    s.decay = decay_rates(h.decoupled_weight_decay.value != 0.0f, h.weight_decay, lr);
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * d);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (d * d));
    float u =
        fma(s.average, m, s.gradient * d) / fma(square_root(v), s.denominator_scale, h.eps.value);
    return {e.w - (decay_of(e.w, s.decay.decoupled) + u), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "NAdam",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"momentum_decay", 4e-3, Range::not_negative},
           {"decoupled_weight_decay", 0, Range::flag},
           {.name = "mu_product", .standard = 1.0, .kept = true}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
