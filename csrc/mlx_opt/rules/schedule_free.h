// Schedule-Free steps, plain, adaptive and rectified: Defazio, Yang, Mehta, Mishchenko, Khaled and
// Cutkosky, arXiv:2405.15682. The parameter is y, where the gradient is taken; z takes the steps of
// the base optimizer; the average x of z is not stored, but is (y - (1 - beta) z) / beta. And
// generalized primal averaging, whose x forgets at a constant rate: arXiv:2512.17131.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// What all these rules know of the average.
struct ScheduleFree {
  template <typename Number>
  struct Kept {
    Number lr_max;         // the largest learning rate so far
    Number averaged_steps; // the weights of all steps in the average, divided by the last one's
  };

  template <typename Number>
  MLX_OPT_FN Number rate(Number warmup_steps, Number lr, Number step) {
    return lr * minimum(step / maximum(warmup_steps, Number(1.0f)), Number(1.0f));
  }

  // A step's weight is step^r * lr_max^weight_lr_power. Only the ratio of two of them is needed,
  // so the sum of many equal weights is exact. While the learning rate is 0, nothing is averaged;
  // the divisor's square is not 0, so that there is a derivative then.
  template <typename Number>
  MLX_OPT_FN Kept<Number> next(
      Kept<Number> before, Number r, Number weight_lr_power, Number rate, Number step) {
    Number lr_max = maximum(before.lr_max, rate);
    Number divisor = maximum(lr_max, Number(1e-18f));
    Number ratio =
        power((step - Number(1.0f)) / step, r) * power(before.lr_max / divisor, weight_lr_power);
    return {lr_max, before.averaged_steps * ratio + lr_max / divisor};
  }

  struct Scalars {
    float rate;
    float weight;    // of z in the average
    float direction; // what is added to y, of the update's direction
  };

  MLX_OPT_FN Scalars prepare(float beta, float averaged_steps, float rate) {
    float weight = averaged_steps > 0.0f ? 1.0f / averaged_steps : 0.0f;
    return with_weight(beta, weight, rate);
  }

  MLX_OPT_FN Scalars with_weight(float beta, float weight, float rate) {
    return {rate, weight, rate * (beta * (1.0f - weight) - 1.0f)};
  }

  MLX_OPT_FN float next_y(float y, float z, float direction, Scalars s) {
    return fma(s.direction, direction, fma(s.weight, z - y, y));
  }
};

struct SGDScheduleFree {
  template <typename Number>
  struct Numbers {
    Number momentum, weight_decay, warmup_steps, r, weight_lr_power;
    Number lr_max, averaged_steps;
  };
  using Hypers = Numbers<Hyper>;
  template <typename Number>
  using Kept = ScheduleFree::Kept<Number>;
  using Scalars = ScheduleFree::Scalars;
  struct Element {
    float w, z;
  };

  template <typename Number>
  MLX_OPT_FN Kept<Number> next(Numbers<Number> h, Number lr, Number step) {
    Kept<Number> before = {h.lr_max, h.averaged_steps};
    Number rate = ScheduleFree::rate(h.warmup_steps, lr, step);
    return ScheduleFree::next(before, h.r, h.weight_lr_power, rate, step);
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float rate = ScheduleFree::rate(h.warmup_steps.value, lr, step);
    return ScheduleFree::prepare(h.momentum.value, h.averaged_steps.value, rate);
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float z = value_or(e.z, e.w);
    float u = g + scaled(h.weight_decay.value, e.w);
    return {ScheduleFree::next_y(e.w, z, u, s), fma(-s.rate, u, z)};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "SGDScheduleFree",
      .hypers =
          {{"momentum", 0.9, Range::fraction},
           {"weight_decay", 0.0, Range::not_negative},
           {"warmup_steps", 0.0, Range::not_negative},
           {"r", 0.0, Range::not_negative},
           {"weight_lr_power", 2.0, Range::not_negative},
           {.name = "lr_max", .standard = 0.0, .kept = true},
           {.name = "averaged_steps", .standard = 0.0, .kept = true}},
      .slots = {{.name = "z", .format = Format::float32, .begin = Begin::unset}},
      .step = {Reads::always},
      .average = {.base = "z", .part = "momentum"},
  })
};

struct AdamWScheduleFree {
  template <typename Number>
  struct Numbers {
    Number beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power;
    Number lr_max, averaged_steps;
  };
  using Hypers = Numbers<Hyper>;
  template <typename Number>
  using Kept = ScheduleFree::Kept<Number>;
  struct Scalars {
    ScheduleFree::Scalars average;
    float denominator_scale;
  };
  struct Element {
    float w, z, v;
  };

  template <typename Number>
  MLX_OPT_FN Kept<Number> next(Numbers<Number> h, Number lr, Number step) {
    Kept<Number> before = {h.lr_max, h.averaged_steps};
    Number rate = ScheduleFree::rate(h.warmup_steps, lr, step);
    return ScheduleFree::next(before, h.r, h.weight_lr_power, rate, step);
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float rate = ScheduleFree::rate(h.warmup_steps.value, lr, step);
    return {
        ScheduleFree::prepare(h.beta1.value, h.averaged_steps.value, rate),
        1.0f / square_root(one_minus_power(h.beta2, step))};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float z = value_or(e.z, e.w);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float u = g / fma(square_root(v), s.denominator_scale, h.eps.value);
    u += scaled(h.weight_decay.value, e.w);
    return {ScheduleFree::next_y(e.w, z, u, s.average), fma(-s.average.rate, u, z), v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdamWScheduleFree",
      .hypers =
          {{"betas[0]", 0.9, Range::fraction},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"warmup_steps", 0.0, Range::not_negative},
           {"r", 0.0, Range::not_negative},
           {"weight_lr_power", 2.0, Range::not_negative},
           {.name = "lr_max", .standard = 0.0, .kept = true},
           {.name = "averaged_steps", .standard = 0.0, .kept = true}},
      .slots =
          {{.name = "z", .format = Format::float32, .begin = Begin::unset},
           {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
      .average = {.base = "z", .part = "betas[0]"},
  })
};

// With the rectification of Liu et al., arXiv:1908.03265, in the place of a warm-up.
struct RAdamScheduleFree {
  template <typename Number>
  struct Numbers {
    Number beta1, beta2, eps, weight_decay, silent_sgd_phase, r, weight_lr_power;
    Number lr_max, averaged_steps;
    Number v_weights; // of all gradients in v, divided by the last one's
    Number v_length;  // how many gradients v averages
  };
  using Hypers = Numbers<Hyper>;
  template <typename Number>
  struct Kept {
    Number lr_max, averaged_steps, v_weights, v_length;
  };
  struct Scalars {
    ScheduleFree::Scalars average;
    float adaptive, denominator; // the root's weight in the denominator, and what is added to it
  };
  struct Element {
    float w, z, v;
  };

  // The factor of the learning rate. It is that of the first phase until v averages more than 4
  // gradients.
  template <typename Number>
  MLX_OPT_FN Number rectified(Number length, Number one_minus_beta2, Number first_phase) {
    Number limit = Number(2.0f) / one_minus_beta2 - Number(1.0f);
    Number excess = maximum(length - Number(4.0f), Number(0.0f));
    Number variance = excess / maximum(limit - Number(4.0f), Number(1e-6f)) *
                      ((length - Number(2.0f)) / maximum(limit - Number(2.0f), Number(1e-6f))) *
                      (limit / length);
    Number is_first = Number(1.0f) - minimum(excess * Number(1e30f), Number(1.0f));
    return power(maximum(variance, Number(0.0f)), Number(0.5f)) + first_phase * is_first;
  }

  // The weights of v are 1, beta2, beta2^2, ..., from the last gradient back, and its length is
  // twice their mean distance less 1. Sums of positive numbers give both without cancellation.
  template <typename Number>
  MLX_OPT_FN Kept<Number> next(Numbers<Number> h, Number lr, Number step) {
    Number one = Number(1.0f);
    Number older = h.beta2 * h.v_weights;
    Number weights = one + older;
    Number length = one + older / weights * (h.v_length + one);
    Number rate = lr * rectified(length, one - h.beta2, one - h.silent_sgd_phase);
    ScheduleFree::Kept<Number> before = {h.lr_max, h.averaged_steps};
    ScheduleFree::Kept<Number> now = ScheduleFree::next(before, h.r, h.weight_lr_power, rate, step);
    return {now.lr_max, now.averaged_steps, weights, length};
  }

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float length = h.v_length.value;
    float rate = lr * rectified(length, h.beta2.one_minus, 1.0f - h.silent_sgd_phase.value);
    Scalars s;
    s.average = ScheduleFree::prepare(h.beta1.value, h.averaged_steps.value, rate);
    s.adaptive = 0.0f;
    s.denominator = 1.0f;
    if (length > 4.0f) {
      s.adaptive = 1.0f / square_root(one_minus_power(h.beta2, step));
      s.denominator = h.eps.value;
    }
    return s;
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float z = value_or(e.z, e.w);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float u = g / (scaled(s.adaptive, square_root(v)) + s.denominator);
    u += scaled(h.weight_decay.value, e.w);
    return {ScheduleFree::next_y(e.w, z, u, s.average), fma(-s.average.rate, u, z), v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "RAdamScheduleFree",
      .hypers =
          {{"betas[0]", 0.9, Range::fraction},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"silent_sgd_phase", 1.0, Range::flag},
           {"r", 0.0, Range::not_negative},
           {"weight_lr_power", 2.0, Range::not_negative},
           {.name = "lr_max", .standard = 0.0, .kept = true},
           {.name = "averaged_steps", .standard = 0.0, .kept = true},
           {.name = "v_weights", .standard = 0.0, .kept = true},
           {.name = "v_length", .standard = 0.0, .kept = true}},
      .slots = {{.name = "z", .format = Format::float32, .begin = Begin::unset}, {"v"}},
      .step = {Reads::always},
      .average = {.base = "z", .part = "betas[0]"},
  })
};

struct GPAAdamW {
  struct Hypers {
    Hyper beta1, beta2, eps, weight_decay, train_interp_coeff, eval_interp_coeff, use_wd_on_y;
  };
  struct Scalars {
    ScheduleFree::Scalars average;
    float moment_scale, denominator_scale;
    float decay_y, decay_z; // one is 0
  };
  struct Element {
    float w, z, m, v;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float decay = lr * h.weight_decay.value;
    bool on_y = h.use_wd_on_y.value != 0.0f;
    return {
        ScheduleFree::with_weight(h.train_interp_coeff.value, h.eval_interp_coeff.one_minus, lr),
        1.0f / one_minus_power(h.beta1, step),
        1.0f / square_root(one_minus_power(h.beta2, step)),
        on_y ? decay : 0.0f,
        on_y ? 0.0f : decay};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    float u = s.moment_scale * m / fma(square_root(v), s.denominator_scale, h.eps.value);
    float z = value_or(e.z, e.w);
    z -= decay_of(z, s.decay_z);
    float y = e.w - decay_of(e.w, s.decay_y);
    return {ScheduleFree::next_y(y, z, u, s.average), fma(-s.average.rate, u, z), m, v};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "GPAAdamW",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.999, Range::below_one},
           {"eps", 1e-8, Range::not_negative},
           {"weight_decay", 0.0, Range::not_negative},
           {"train_interp_coeff", 0.7, Range::fraction},
           {"eval_interp_coeff", 0.9967, Range::below_one},
           {"use_wd_on_y", 0, Range::flag}},
      .slots =
          {{.name = "z", .format = Format::float32, .begin = Begin::unset},
           {"m"},
           {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
      .average = {.base = "z", .part = "train_interp_coeff"},
  })
};

MLX_OPT_RULES_END
