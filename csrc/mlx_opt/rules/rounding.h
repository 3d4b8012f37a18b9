// Stochastic rounding to bfloat16: up or down, with probabilities that keep the mean.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// A hash whose bits all depend on all bits of x.
MLX_OPT_FN unsigned mixed(unsigned x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The key of a tensor's random bits in a step, for the parameter (field 0) or a slot.
MLX_OPT_FN unsigned rounding_key(unsigned tensor, float step, unsigned field) {
  return mixed(mixed(tensor ^ mixed(static_cast<unsigned>(as_int(step)))) + field * 0x9e3779b9u);
}

// 16 random bits of an element. As `mixed` without the steps that only the lower bits need.
MLX_OPT_FN unsigned random_bits(unsigned key, unsigned element) {
  unsigned x = (element ^ key) * 0x7feb352du;
  return ((x ^ (x >> 15)) * 0x846ca68bu) >> 16;
}

// x rounded to bfloat16. The random bits depend on nothing but the key and the element's index in
// the tensor, so neither threads nor devices change them. A finite number stays finite.
MLX_OPT_FN float rounded(float x, unsigned key, unsigned element) {
  unsigned infinite = 0x7f800000u;
  unsigned bits = static_cast<unsigned>(as_int(x));
  unsigned up = bits + random_bits(key, element);
  unsigned result = ((up & infinite) == infinite ? bits : up) & 0xffff0000u;
  return x == x ? as_float(static_cast<int>(result)) : x;
}

MLX_OPT_RULES_END
