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
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .when =
          {{"nesterov", Setting::off},
           {"cautious_weight_decay", Setting::off},
           {"weight_decay_kind", Setting::decoupled},
           {"amsgrad", Setting::off}},
      .step = {Reads::if_set, "bias_correction"},
      .is_common = true,
  })
};

// With a momentum that looks one step ahead (Dozat, ICLR 2016 workshop) and with weight decay of
// any kind, or one of these.
struct AdamWVariant {
  struct Hypers {
    Hyper beta1, beta2, eps;
    WeightDecay weight_decay;
    Hyper bias_correction, nesterov;
  };
  struct Scalars {
    float average, gradient; // the weights of m and of the gradient in the update
    float step_size, denominator_scale;
    DecayRates decay;
  };
  using Element = AdamW::Element;

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    AdamW::Scalars plain =
        AdamW::prepare({h.beta1, h.beta2, h.eps, h.weight_decay.rate, h.bias_correction}, lr, step);
    bool nesterov = h.nesterov.value != 0.0f;
    return {
        nesterov ? h.beta1.value : 1.0f,
        nesterov ? h.beta1.one_minus : 0.0f,
        plain.step_size,
        plain.denominator_scale,
        decay_rates(h.weight_decay, lr)};
  }

  // The gradient to which decay may be added.
  MLX_OPT_FN float with_decay(float w, float g, Scalars s) {
    return g + scaled(s.decay.coupled, w);
  }

  MLX_OPT_FN Element moments(Element e, float d, Hypers h) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * d);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (d * d));
    return {e.w, m, v};
  }

  // The new parameter, whose denominator is from the squares `v`.
  MLX_OPT_FN float descended(float w, float d, float m, float v, Hypers h, Scalars s) {
    float average = fma(s.average, m, scaled(s.gradient, d));
    float u = s.step_size * average / fma(square_root(v), s.denominator_scale, h.eps.value);
    return w - (decay_of(w, u, h.weight_decay, s.decay) + u);
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = with_decay(e.w, g, s);
    Element next = moments(e, d, h);
    return {descended(e.w, d, next.m, next.v, h, s), next.m, next.v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdamW",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.01},
           {"weight_decay_kind", 1, Range::decay_kind},
           {"max_learning_rate", 0.0, Range::not_negative},
           {"cautious_weight_decay", 0, Range::flag},
           {"bias_correction", 0, Range::flag},
           {"nesterov", 0, Range::flag}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::if_set, "bias_correction"},
  })
};

// With the largest of all v so far in the denominator: Reddi, Kale and Kumar, ICLR 2018,
// arXiv:1904.09237. As in PyTorch, the largest is of v before its bias is corrected.
struct AdamAMSGrad {
  using Hypers = AdamWVariant::Hypers;
  using Scalars = AdamWVariant::Scalars;
  struct Element {
    float w, m, v, v_max;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    return AdamWVariant::prepare(h, lr, step);
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = AdamWVariant::with_decay(e.w, g, s);
    AdamW::Element next = AdamWVariant::moments({e.w, e.m, e.v}, d, h);
    float v_max = maximum(e.v_max, next.v);
    return {AdamWVariant::descended(e.w, d, next.m, v_max, h, s), next.m, next.v, v_max};
  }

  MLX_OPT_DESCRIBE(variant_of(
      AdamWVariant::description,
      {{"amsgrad", Setting::on}},
      {.name = "v_max", .codes = Codes::not_negative}))
};

// With only those elements of the update that agree in sign with the gradient, scaled up: Liang et
// al., arXiv:2411.16085. A rule of two passes over each tensor. Its decay is not coupled.
struct CautiousAdamW {
  using Hypers = AdamWVariant::Hypers;
  using Scalars = AdamWVariant::Scalars;
  using Element = AdamW::Element;
  struct Sums {
    float agreeing, elements;
  };
  struct Rates {
    float scale; // of the elements that agree
  };
  enum : unsigned { first_pass_reads = 2 | 4 }; // m and v

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    return AdamWVariant::prepare(h, lr, step);
  }

  MLX_OPT_FN Element update_state(Element e, float g, Hypers h, Scalars) {
    return AdamWVariant::moments(e, g, h);
  }

  MLX_OPT_FN float average(Element e, float g, Scalars s) {
    return fma(s.average, e.m, scaled(s.gradient, g));
  }

  MLX_OPT_FN Sums sums(Element e, float g, Hypers, Scalars s) {
    return {agree(average(e, g, s), g) ? 1.0f : 0.0f, 1.0f};
  }

  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars) {
    return {1.0f / maximum(sums.agreeing / maximum(sums.elements, 1.0f), 1e-3f)};
  }

  MLX_OPT_FN float update(Element e, float g, Hypers h, Scalars s, Rates r) {
    // At least this is the mean, but in float16 it may be stored as 0.
    float least = h.beta2.one_minus * (g * g);
    float root = square_root(e.v < least ? least : e.v);
    float direction = average(e, g, s);
    float step_size = agree(direction, g) ? r.scale * s.step_size : 0.0f;
    float u = step_size * direction / fma(root, s.denominator_scale, h.eps.value);
    return e.w - (decay_of(e.w, u, h.weight_decay, s.decay) + u);
  }

  MLX_OPT_DESCRIBE(variant_of(AdamWVariant::description, {{"cautious", Setting::on}}))
};

MLX_OPT_RULES_END
