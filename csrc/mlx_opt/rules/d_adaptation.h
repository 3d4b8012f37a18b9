// Steps whose size is found while training, from sums over all tensors: D-Adaptation (Defazio and
// Mishchenko, arXiv:2301.07733) and its successor (Mishchenko and Defazio, arXiv:2306.06101). An
// estimate d of the distance from the first to the best parameters multiplies the learning rate.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// What both rules share. Most functions are templates, for they also build graphs of 0-d arrays.
struct DAdaptation {
  // Over all tensors. The estimate is the quotient.
  template <typename Number>
  struct Sums {
    Number numerator, denominator;
  };

  // A Hyper of other numbers.
  template <typename Number>
  struct Exact {
    Number value, one_minus, log;
  };

  MLX_OPT_FN float value_of(Hyper x) {
    return x.value;
  }

  template <typename Number>
  MLX_OPT_FN Number value_of(Exact<Number> x) {
    return x.value;
  }

  MLX_OPT_FN float complement(Hyper x) {
    return x.one_minus;
  }

  template <typename Number>
  MLX_OPT_FN Number complement(Exact<Number> x) {
    return x.one_minus;
  }

  MLX_OPT_FN float root(float x) {
    return square_root(x);
  }

  template <typename Number>
  MLX_OPT_FN Number root(Number x) {
    return power(x, Number(0.5f));
  }

  // 1 - beta^step.
  MLX_OPT_FN float correction(Hyper beta, float step) {
    return one_minus_power(beta, step);
  }

  template <typename Number>
  MLX_OPT_FN Number correction(Exact<Number> beta, Number step) {
    return Number(0.0f) - expm1(step * beta.log);
  }

  // The learning rate, with Adam's bias correction if that is asked for.
  template <typename Value, typename Number>
  MLX_OPT_FN Number rate(Value beta1, Value beta2, Value corrects, Number lr, Number step) {
    Number scaled = lr * root(correction(beta2, step)) / correction(beta1, step);
    return where(value_of(corrects) != Number(0.0f), scaled, lr);
  }

  // d after a step in which it grows at most by the factor, which may be infinite.
  template <typename Number>
  MLX_OPT_FN Number grown(Number d, Number growth_rate) {
    return d * minimum(growth_rate, Number(1e30f));
  }

  template <typename Number>
  MLX_OPT_FN Number with_decay(Number g, Number decay, Number w) {
    return g + where(decay == Number(0.0f), Number(0.0f), decay * w);
  }
};

struct Prodigy {
  template <typename Number>
  struct Numbers {
    Number beta1, beta2, beta3, eps, weight_decay, decouple, use_bias_correction;
    Number safeguard_warmup, d0, d_coef, growth_rate;
    Number d;           // for the next step; 0 before the first
    Number d_max;       // of all estimates
    Number d_numerator; // the average of the sum
    Number d_step;      // the d of this step; 0 if no gradient was anything but 0
  };
  using Hypers = Numbers<Hyper>;
  template <typename Number>
  struct Kept {
    Number d, d_max, d_numerator, d_step;
  };
  template <typename Number>
  using Sums = DAdaptation::Sums<Number>;
  template <typename Number>
  struct Fields {
    Number w, m, v, s, p0;
  };
  using Element = Fields<float>;
  enum : unsigned { sums_read = 1 + 8 + 16 }; // w, s and p0

  // What an element's sums and its s depend on.
  template <typename Number>
  struct Weights {
    Number beta3;
    Number numerator, s; // what multiplies the gradient there
    Number counts;       // 0 if the element is not updated, else 1
    Number coupled_decay;
    Number rate; // d times the learning rate
  };
  struct Scalars {
    Weights<float> weights;
    float d, eps, decay, beta1, beta2;
  };

  template <typename Number>
  MLX_OPT_FN Number first_d(Number d, Number d0) {
    return maximum(d, d0);
  }

  // As published: the square root of betas[1] if there is no beta3.
  template <typename Number>
  MLX_OPT_FN Number decay_of_sums(Number beta2, Number beta3) {
    return where(beta3 == Number(0.0f), DAdaptation::root(beta2), beta3);
  }

  template <typename Value, typename Number>
  MLX_OPT_FN Weights<Number> weights(Numbers<Value> h, Number d, Number lr, Number step) {
    using D = DAdaptation;
    Number rate = d * D::rate(h.beta1, h.beta2, h.use_bias_correction, lr, step);
    Number ratio = d / D::value_of(h.d0);
    return {
        decay_of_sums(D::value_of(h.beta2), D::value_of(h.beta3)),
        ratio * rate,
        ratio * where(D::value_of(h.safeguard_warmup) != Number(0.0f), d, rate),
        where(lr > Number(0.0f), Number(1.0f), Number(0.0f)),
        where(D::value_of(h.decouple) != Number(0.0f), Number(0.0f), D::value_of(h.weight_decay)),
        rate};
  }

  // Before the sums are known.
  template <typename Value, typename Number>
  MLX_OPT_FN Weights<Number> prepare_sums(Numbers<Value> h, Number lr, Number step) {
    using D = DAdaptation;
    return weights(h, first_d(D::value_of(h.d), D::value_of(h.d0)), lr, step);
  }

  template <typename Number>
  MLX_OPT_FN Number next_s(Number s, Number g, Weights<Number> weights) {
    return weights.beta3 * s + weights.s * g;
  }

  template <typename Number>
  MLX_OPT_FN Sums<Number> sums(Fields<Number> e, Number g, Weights<Number> weights) {
    Number d = DAdaptation::with_decay(g, weights.coupled_decay, e.w);
    Number first = where(e.p0 == e.p0, e.p0, e.w);
    Number way = where(first == e.w, Number(0.0f), first - e.w);
    Number s = next_s(e.s, d, weights);
    return {weights.numerator * d * way, weights.counts * maximum(s, Number(0.0f) - s)};
  }

  template <typename Number>
  MLX_OPT_FN Kept<Number> next(Numbers<Number> h, Sums<Number> sums, Number, Number) {
    Number d = first_d(h.d, h.d0);
    Number numerator = decay_of_sums(h.beta2, h.beta3) * h.d_numerator + sums.numerator;
    auto stays = sums.denominator == Number(0.0f);
    Number estimate = h.d_coef * numerator / where(stays, Number(1.0f), sums.denominator);
    Number largest = maximum(first_d(h.d_max, h.d0), estimate);
    Number current = where(d == h.d0, maximum(d, estimate), d);
    Number grown = minimum(largest, DAdaptation::grown(current, h.growth_rate));
    return {
        where(stays, h.d, grown),
        where(stays, h.d_max, largest),
        where(stays, h.d_numerator, numerator),
        where(stays, Number(0.0f), d)};
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.weights = weights(h, h.d_step.value, lr, step);
    s.d = h.d_step.value;
    s.eps = h.d.value * h.eps.value;
    s.decay = h.decouple.value != 0.0f ? s.weights.rate * h.weight_decay.value : 0.0f;
    s.beta1 = h.beta1.value;
    s.beta2 = h.beta2.value;
    if (s.d * s.weights.counts == 0.0f) { // the step changes nothing
      s.weights.beta3 = s.beta1 = s.beta2 = s.eps = 1.0f;
      s.weights.s = s.d = 0.0f;
    }
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float decayed = DAdaptation::with_decay(g, s.weights.coupled_decay, e.w);
    float d = s.d * decayed;
    float m = fma(s.beta1, e.m, h.beta1.one_minus * d);
    float v = fma(s.beta2, e.v, h.beta2.one_minus * (d * d));
    float u = s.weights.rate * m / (square_root(v) + s.eps);
    float w = e.w - (decay_of(e.w, s.decay) + u);
    return {w, m, v, next_s(e.s, decayed, s.weights), value_or(e.p0, e.w)};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Prodigy",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"beta3", 0.0, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"decouple", 1, Range::flag},
           {"use_bias_correction", 0, Range::flag},
           {"safeguard_warmup", 0, Range::flag},
           {"d0", 1e-6, Range::positive},
           {"d_coef", 1.0, Range::positive},
           {"growth_rate", unlimited, Range::positive},
           {.name = "d", .standard = 0.0, .kept = true},
           {.name = "d_max", .standard = 0.0, .kept = true},
           {.name = "d_numerator", .standard = 0.0, .kept = true},
           {.name = "d_step", .standard = 0.0, .kept = true}},
      .slots =
          {{.name = "m", .format = Format::float32},
           {.name = "v", .format = Format::float32},
           {.name = "s", .format = Format::float32},
           {.name = "p0", .begin = Begin::unset, .codes = Codes::none}},
      .step = {Reads::if_set, "use_bias_correction"},
  })
};

struct DAdaptAdam {
  template <typename Number>
  struct Numbers {
    Number beta1, beta2, eps, weight_decay, decouple, use_bias_correction, d0, growth_rate;
    Number d;           // for the next step; 0 before the first
    Number d_numerator; // the average of the sum
    Number d_step;      // the d of this step; 0 if no gradient was anything but 0
  };
  using Hypers = Numbers<Hyper>;
  template <typename Number>
  struct Kept {
    Number d, d_numerator, d_step;
  };
  template <typename Number>
  using Sums = DAdaptation::Sums<Number>;
  template <typename Number>
  struct Fields {
    Number w, m, v, s;
  };
  using Element = Fields<float>;
  enum : unsigned { sums_read = 1 + 4 + 8 }; // w, v and s

  // What an element's sums and its s depend on.
  template <typename Number>
  struct Weights {
    Number beta, s; // what multiplies s and the gradient there
    Number counts;  // 0 if the element is not updated, else 1
    Number eps, coupled_decay;
    Number rate; // d times the learning rate
  };
  struct Scalars {
    Weights<float> weights;
    float decay, beta1, beta2;
    float squares, direction; // what multiplies the gradient's square in v, and the direction in w
  };

  template <typename Value, typename Number>
  MLX_OPT_FN Weights<Number> weights(Numbers<Value> h, Number d, Number lr, Number step) {
    using D = DAdaptation;
    Number rate = d * D::rate(h.beta1, h.beta2, h.use_bias_correction, lr, step);
    Number beta = D::root(D::value_of(h.beta2));
    return {
        beta,
        rate * (D::complement(h.beta2) / (Number(1.0f) + beta)),
        where(lr > Number(0.0f), Number(1.0f), Number(0.0f)),
        D::value_of(h.eps),
        where(D::value_of(h.decouple) != Number(0.0f), Number(0.0f), D::value_of(h.weight_decay)),
        rate};
  }

  // Before the sums are known.
  template <typename Value, typename Number>
  MLX_OPT_FN Weights<Number> prepare_sums(Numbers<Value> h, Number lr, Number step) {
    using D = DAdaptation;
    return weights(h, maximum(D::value_of(h.d), D::value_of(h.d0)), lr, step);
  }

  template <typename Number>
  MLX_OPT_FN Number next_s(Number s, Number g, Weights<Number> weights) {
    return weights.beta * s + weights.s * g;
  }

  template <typename Number>
  MLX_OPT_FN Sums<Number> sums(Fields<Number> e, Number g, Weights<Number> weights) {
    Number d = DAdaptation::with_decay(g, weights.coupled_decay, e.w);
    Number s = next_s(e.s, d, weights);
    Number size = DAdaptation::root(e.v) + weights.eps;
    Number step = where(e.s == Number(0.0f), Number(0.0f), e.s / size);
    return {weights.rate * d * step, weights.counts * maximum(s, Number(0.0f) - s)};
  }

  template <typename Number>
  MLX_OPT_FN Kept<Number> next(Numbers<Number> h, Sums<Number> sums, Number, Number) {
    Number d = maximum(h.d, h.d0);
    Number numerator = DAdaptation::root(h.beta2) * h.d_numerator + sums.numerator;
    auto stays = sums.denominator == Number(0.0f);
    Number estimate = numerator / where(stays, Number(1.0f), sums.denominator);
    Number limit = DAdaptation::grown(d, h.growth_rate);
    Number grown = maximum(d, minimum(estimate, limit));
    return {
        where(stays, h.d, grown),
        where(stays, h.d_numerator, numerator),
        where(stays, Number(0.0f), d)};
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    Scalars s;
    s.weights = weights(h, h.d_step.value, lr, step);
    s.decay = h.decouple.value != 0.0f ? s.weights.rate * h.weight_decay.value : 0.0f;
    s.beta1 = h.beta1.value;
    s.beta2 = h.beta2.value;
    s.squares = h.beta2.one_minus;
    s.direction = 1.0f;
    if (h.d_step.value * s.weights.counts == 0.0f) { // the step changes nothing
      s.weights.beta = s.weights.eps = s.beta1 = s.beta2 = 1.0f;
      s.squares = s.direction = 0.0f;
    }
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float d = DAdaptation::with_decay(g, s.weights.coupled_decay, e.w);
    float m = fma(s.beta1, e.m, s.weights.rate * (h.beta1.one_minus * d));
    float v = fma(s.beta2, e.v, s.squares * (d * d));
    float u = s.direction * (m / (square_root(v) + s.weights.eps));
    float w = e.w - (decay_of(e.w, s.decay) + u);
    return {w, m, v, next_s(e.s, d, s.weights)};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "DAdaptAdam",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"decouple", 0, Range::flag},
           {"use_bias_correction", 0, Range::flag},
           {"d0", 1e-6, Range::positive},
           {"growth_rate", unlimited, Range::positive},
           {.name = "d", .standard = 0.0, .kept = true},
           {.name = "d_numerator", .standard = 0.0, .kept = true},
           {.name = "d_step", .standard = 0.0, .kept = true}},
      .slots =
          {{.name = "m", .format = Format::float32},
           {.name = "v", .format = Format::float32},
           {.name = "s", .format = Format::float32}},
      .step = {Reads::if_set, "use_bias_correction"},
  })
};

MLX_OPT_RULES_END
