// AdamH: Adam on a sphere, of Wen, Dang, Lyu, Ma and Liang, "Fantastic Pretraining Optimizers and
// Where to Find Them 2.1: Hyperball Optimization". A rule of two passes over each tensor.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct AdamH {
  struct Hypers {
    Hyper beta1, beta2, eps;
  };
  struct Scalars {
    float lr, moment_scale, denominator_scale;
  };
  struct Element {
    float w, m, v;
  };
  struct Sums {
    float w, u;    // of the squares of the parameter and of the direction
    float product; // of the two
  };
  struct Rates {
    float growth, step_size; // growth: of the parameter, before the step is subtracted
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float c2 = one_minus_power(h.beta2, step);
    return {lr, 1.0f / one_minus_power(h.beta1, step), 1.0f / square_root(c2)};
  }

  MLX_OPT_FN Element update_state(Element e, float g, Hypers h, Scalars) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * g);
    float v = fma(h.beta2.value, e.v, h.beta2.one_minus * (g * g));
    return {e.w, m, v};
  }

  MLX_OPT_FN float direction(Element e, Hypers h, Scalars s) {
    return s.moment_scale * e.m / fma(square_root(e.v), s.denominator_scale, h.eps.value);
  }

  MLX_OPT_FN Sums sums(Element e, Hypers h, Scalars s) {
    float u = direction(e, h, s);
    return {e.w * e.w, u * u, e.w * u};
  }

  // The step is as long as lr times the parameter, whose norm is then restored. So the factor for
  // that depends on lr and the angle between the two alone. It is near 1, and all elements have the
  // same: its difference from 1 is what must be exact.
  MLX_OPT_FN Rates rates(Sums sums, Hypers, Scalars s) {
    if (!(sums.w > 0.0f && sums.u > 0.0f)) {
      return {0.0f, 0.0f};
    }
    float w = square_root(sums.w), u = square_root(sums.u);
    float cosine = sums.product / w / u;
    float rest = 1.0f - s.lr;
    float square = fma(2.0f * s.lr, maximum(1.0f - cosine, 0.0f), rest * rest);
    if (square == 0.0f) { // the step ends in the origin
      return {-1.0f, 0.0f};
    }
    float moved = square_root(square);
    float growth = s.lr * (2.0f * cosine - s.lr) / (moved * (1.0f + moved));
    return {growth, s.lr * (w / u) / moved};
  }

  MLX_OPT_FN float update(Element e, Hypers h, Scalars s, Rates r) {
    return e.w + (scaled(r.growth, e.w) - r.step_size * direction(e, h, s));
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "AdamH",
      .hypers =
          {{"betas[0]", 0.9, Range::below_one},
           {"betas[1]", 0.95, Range::below_one},
           {"eps", 1e-8, Range::not_negative}},
      .slots = {{"m"}, {.name = "v", .codes = Codes::not_negative}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
