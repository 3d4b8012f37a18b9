// Adafactor: Shazeer and Stern, arXiv:1804.04235. Not an elementwise rule: its drivers compute the
// means of rows and columns and of whole tensors.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Adafactor {
  struct Hypers {
    Hyper eps1, eps2, clip_threshold, decay_rate, beta1;
    Hyper weight_decay, scale_parameter, relative_step, warmup_init;
  };
  struct Scalars {
    float fresh, step_size; // fresh: the weight of new squares in the running means, 1 - beta2
  };
  struct Rates {
    float update, decay;
  };
  struct Element {
    float w, m;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    float max_relative = h.warmup_init.value != 0.0f ? 1e-6f * step : 1e-2f;
    float relative = minimum(max_relative, 1.0f / square_root(step));
    return {power(step, h.decay_rate.value), h.relative_step.value != 0.0f ? relative : lr};
  }

  // The running mean of the squares of a row, of a column or of one element.
  MLX_OPT_FN float average(float v, float square, Hypers h, Scalars s) {
    return fma(1.0f - s.fresh, v, s.fresh * (square + h.eps1.value));
  }

  // The update of an element is its gradient times the factors of its row and column, or, if the
  // tensor is not factored, times `factor` of its own running mean.
  MLX_OPT_FN float row_factor(float row, float mean_row) {
    return 1.0f / square_root(row / mean_row);
  }

  MLX_OPT_FN float factor(float v) {
    return 1.0f / square_root(v);
  }

  // Once for each tensor, from the root mean squares of its parameter and its update.
  MLX_OPT_FN Rates rates(float rms_w, float rms_u, Hypers h, Scalars s) {
    float scale = h.scale_parameter.value != 0.0f ? maximum(h.eps2.value, rms_w) : 1.0f;
    float lr = scale * s.step_size;
    return {lr / maximum(1.0f, rms_u / h.clip_threshold.value), lr * h.weight_decay.value};
  }

  // Without a first moment beta1 is 0, and so is m.
  MLX_OPT_FN Element update(Element e, float u, Hypers h, Rates r) {
    float m = fma(h.beta1.value, e.m, h.beta1.one_minus * (r.update * u));
    return {e.w - (decay_of(e.w, r.decay) + m), m};
  }

  MLX_OPT_DESCRIBE({
      .optimizer = "Adafactor",
      .hypers =
          {{"eps[0]", 1e-30, Range::not_negative},
           {"eps[1]", 1e-3, Range::not_negative},
           {"clip_threshold", 1.0, Range::positive},
           {"decay_rate", -0.8, Range::not_positive},
           {"beta_1", 0.0, Range::below_one},
           {"weight_decay", 0.0},
           {"scale_parameter", 1, Range::flag},
           {"relative_step", 1, Range::flag},
           {"warmup_init", 0, Range::flag}},
      .slots =
          {{"exp_avg_sq_row", Extent::rows, Owner::matrices},
           {"exp_avg_sq_col", Extent::columns, Owner::matrices},
           {"exp_avg_sq", Extent::elements, Owner::vectors},
           {.name = "exp_avg", .option = "beta_1", .follows = true}},
      .step = {Reads::always},
      .learning_rate = {Reads::unless_set, "relative_step"},
      .coupling = {Coupling::always},
  })
};

MLX_OPT_RULES_END
