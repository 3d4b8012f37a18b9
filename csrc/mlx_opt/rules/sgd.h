// Stochastic gradient descent: plain, with momentum (Polyak, 1964), and with Nesterov's momentum
// (Sutskever et al., ICML 2013).
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct SGD {
  struct Hypers {
    Hyper weight_decay;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    return {fma(-s.lr, g + scaled(h.weight_decay.value, e.w), e.w)};
  }

  // mlx.optimizers has a v even without momentum.
  MLX_OPT_DESCRIBE({
      .optimizer = "SGD",
      .hypers = {{"weight_decay", 0.0}},
      .slots = {{.name = "v", .idle = true}},
      .coupling = {Coupling::unless_zero, "weight_decay"},
  })
};

struct Momentum {
  struct Hypers {
    Hyper momentum, dampening, weight_decay;
  };
  struct Scalars {
    float lr, fresh; // fresh: the weight of a gradient in v; a negative dampening counts as 0
  };
  struct Element {
    float w, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr, h.dampening.value > 0.0f ? h.dampening.one_minus : 1.0f};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(h.weight_decay.value, e.w);
    float v = fma(h.momentum.value, e.v, s.fresh * d);
    return {fma(-s.lr, v, e.w), v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "SGD",
      .hypers = {{"momentum", 0.0}, {"dampening", 0.0}, {"weight_decay", 0.0}},
      .slots = {{"v"}},
      .when = {{"momentum", Setting::positive}, {"nesterov", Setting::off}},
      .coupling = {Coupling::unless_zero, "weight_decay"},
  })
};

struct Nesterov {
  using Hypers = Momentum::Hypers;
  using Scalars = SGD::Scalars;
  using Element = Momentum::Element;

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(h.weight_decay.value, e.w);
    float v = fma(h.momentum.value, e.v, d);
    return {fma(-s.lr, fma(h.momentum.value, v, d), e.w), v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "SGD",
      .hypers = {{"momentum", 0.0}, {"dampening", 0.0}, {"weight_decay", 0.0}},
      .slots = {{"v"}},
      .when = {{"momentum", Setting::positive}, {"nesterov", Setting::on}},
      .coupling = {Coupling::unless_zero, "weight_decay"},
  })
};

MLX_OPT_RULES_END
