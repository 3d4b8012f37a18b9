// Stochastic gradient descent: plain, with momentum (Polyak, 1964), and with Nesterov's momentum
// (Sutskever et al., ICML 2013).
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct SGD {
  struct Hypers {
    WeightDecay weight_decay;
  };
  struct Scalars {
    float lr;
    DecayRates decay;
  };
  struct Element {
    float w;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, decay_rates(h.weight_decay, lr)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    return {fma(-s.lr, d, e.w - decay_of(e.w, d, h.weight_decay, s.decay))};
  }

  // mlx.optimizers has a v even without momentum.
  MLX_OPT_DESCRIBE({
      .optimizer = "SGD",
      .hypers =
          {{"weight_decay", 0.0},
           {"weight_decay_kind", 0, Range::decay_kind},
           {"max_learning_rate", 0.0, Range::not_negative},
           {"cautious_weight_decay", 0, Range::flag}},
      .slots = {{.name = "v", .idle = true}},
      .coupling = {Coupling::unless_zero, "weight_decay", "weight_decay_kind"},
  })
};

struct Momentum {
  struct Hypers {
    Hyper momentum, dampening;
    WeightDecay weight_decay;
  };
  struct Scalars {
    float lr, fresh; // fresh: the weight of a gradient in v; a negative dampening counts as 0
    DecayRates decay;
  };
  struct Element {
    float w, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    float fresh = h.dampening.value > 0.0f ? h.dampening.one_minus : 1.0f;
    return {lr, fresh, decay_rates(h.weight_decay, lr)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float v = fma(h.momentum.value, e.v, s.fresh * d);
    return {fma(-s.lr, v, e.w - decay_of(e.w, v, h.weight_decay, s.decay)), v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "SGD",
      .hypers =
          {{"momentum", 0.0},
           {"dampening", 0.0},
           {"weight_decay", 0.0},
           {"weight_decay_kind", 0, Range::decay_kind},
           {"max_learning_rate", 0.0, Range::not_negative},
           {"cautious_weight_decay", 0, Range::flag}},
      .slots = {{"v"}},
      .when = {{"momentum", Setting::positive}, {"nesterov", Setting::off}},
      .coupling = {Coupling::unless_zero, "weight_decay", "weight_decay_kind"},
  })
};

struct Nesterov {
  using Hypers = Momentum::Hypers;
  using Scalars = SGD::Scalars;
  using Element = Momentum::Element;

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, decay_rates(h.weight_decay, lr)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float v = fma(h.momentum.value, e.v, d);
    float u = fma(h.momentum.value, v, d);
    return {fma(-s.lr, u, e.w - decay_of(e.w, u, h.weight_decay, s.decay)), v};
  }

  MLX_OPT_DESCRIBE(variant_of(
      Momentum::description, {{"momentum", Setting::positive}, {"nesterov", Setting::on}}))
};

MLX_OPT_RULES_END
