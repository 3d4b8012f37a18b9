// Lion: Chen et al., arXiv:2302.06675.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Lion {
  struct Hypers {
    Hyper beta1, beta2;
    WeightDecay weight_decay;
  };
  struct Scalars {
    float lr;
    DecayRates decay;
  };
  struct Element {
    float w, m;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    h.weight_decay.rate.value = maximum(h.weight_decay.rate.value, 0.0f); // none if negative
    return {lr, decay_rates(h.weight_decay, lr)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = g + scaled(s.decay.coupled, e.w);
    float c = fma(h.beta1.value, e.m, h.beta1.one_minus * d);
    float m = fma(h.beta2.value, e.m, h.beta2.one_minus * d);
    float u = s.lr * sign(c);
    return {e.w - (decay_of(e.w, u, h.weight_decay, s.decay) + u), m};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Lion",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.99, Range::below_one},
           {"weight_decay", 0.0},
           {"weight_decay_kind", 1, Range::decay_kind},
           {"max_learning_rate", 0.0, Range::not_negative},
           {"cautious_weight_decay", 0, Range::flag}},
      .slots = {{"m"}},
      .is_common = true,
  })
};

// With only those elements of the update that agree in sign with the gradient, scaled up: Liang et
// al., arXiv:2411.16085. A rule of two passes over each tensor. Its decay is not coupled.
struct CautiousLion {
  using Hypers = Lion::Hypers;
  using Scalars = Lion::Scalars;
  using Element = Lion::Element;
  struct Sums {
    float agreeing, elements;
  };
  struct Rates {
    float scale; // of the elements that agree
  };
  enum : unsigned { first_pass_reads = 2 }; // m

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    return Lion::prepare(h, lr, step);
  }

  MLX_OPT_FN float direction(Element e, float g, Hypers h) {
    return sign(fma(h.beta1.value, e.m, h.beta1.one_minus * g));
  }

  MLX_OPT_FN Sums sums(Element e, float g, Hypers h, Scalars) {
    return {agree(direction(e, g, h), g) ? 1.0f : 0.0f, 1.0f};
  }

  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars) {
    return {sums.elements / (sums.agreeing + 1.0f)};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s, Rates r) {
    float c = direction(e, g, h);
    float m = fma(h.beta2.value, e.m, h.beta2.one_minus * g);
    float u = agree(c, g) ? s.lr * r.scale * c : 0.0f;
    return {e.w - (decay_of(e.w, u, h.weight_decay, s.decay) + u), m};
  }

  MLX_OPT_DESCRIBE(variant_of(Lion::description, {{"cautious", Setting::on}}))
};

MLX_OPT_RULES_END
