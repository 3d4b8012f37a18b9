// QHAdam: Ma and Yarats, ICLR 2019, arXiv:1810.06801.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct QHAdam {
  struct Hypers {
    Hyper beta1, beta2, nu1, nu2, eps, weight_decay, decouple_weight_decay;
  };
  struct Scalars {
    float fresh1, fresh2; // the gradient's weights in m and v, by which they need no correction
    float kept1, kept2;
    float average, gradient; // the learning rate times what m and the gradient weigh in the update
    DecayRates decay;
  };
  struct Element {
    float w, m, v;
  };

  MLX_OPT_FN float fresh(Hyper beta, float step) {
    return step > 1.0f ? beta.one_minus / one_minus_power(beta, step) : 1.0f;
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.fresh1 = fresh(h.beta1, step);
    s.fresh2 = fresh(h.beta2, step);
    s.kept1 = 1.0f - s.fresh1;
    s.kept2 = 1.0f - s.fresh2;
    s.average = lr * h.nu1.value;
    s.gradient = lr * h.nu1.one_minus;
    s.decay = decay_rates(h.decouple_weight_decay.value != 0.0f, h.weight_decay, lr);
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float m = fma(s.kept1, e.m, s.fresh1 * d);
    float v = fma(s.kept2, e.v, s.fresh2 * (d * d));
    float square = fma(h.nu2.value, v, scaled(h.nu2.one_minus, d * d));
    float u = fma(s.average, m, scaled(s.gradient, d)) / (square_root(square) + h.eps.value);
    return {e.w - (decay_of(e.w, s.decay.decoupled) + u), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "QHAdam",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"nus[0]", 1.0, Range::not_negative},
           {"nus[1]", 1.0, Range::not_negative},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"decouple_weight_decay", 0, Range::flag}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
