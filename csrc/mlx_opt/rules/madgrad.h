// MADGRAD: Defazio and Jelassi, JMLR 23 (2022), arXiv:2101.11075.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct MADGRAD {
  struct Hypers {
    Hyper momentum, weight_decay, eps;
  };
  struct Scalars {
    float weight; // of this step's gradient in the sums
  };
  struct Element {
    float w, s, v, x0;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float step) {
    return {lr * square_root(step)};
  }

  // x0 is the parameter before its first step.
  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars c) {
    float d = g + scaled(h.weight_decay.value, e.w);
    float s = fma(c.weight, d, e.s);
    float v = fma(c.weight, d * d, e.v);
    float x0 = value_or(e.x0, e.w);
    float root = cube_root(v) + h.eps.value;
    float z = x0 - (root == 0.0f ? 0.0f : s / root);
    return {fma(h.momentum.value, e.w, h.momentum.one_minus * z), s, v, x0};
  }

  // In bfloat16 the sums would stop growing once they are 256 times their increments.
  MLX_OPT_DESCRIBE({
      .optimizer = "MADGRAD",
      .hypers =
          {{"momentum", 0.9, Range::below_one},
           {"weight_decay", 0.0, Range::not_negative},
           {"eps", 1e-6, Range::not_negative}},
      .slots =
          {{.name = "s", .format = Format::float32},
           {.name = "v", .format = Format::float32},
           {.name = "x0", .format = Format::float32, .begin = Begin::unset}},
      .step = {Reads::always},
  })
};

MLX_OPT_RULES_END
