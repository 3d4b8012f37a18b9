// The stages around the rules that keep the weight of a narrow parameter in float32: as a number
// beside the parameter, the master, or as the 16 bits that a bfloat16 lacks, the remainder. The
// parameter is the weight's rounding.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// The weight of a parameter w: its master, or w if something else has written w since the last
// step, which is so if w is not the master's rounding. An unset master is NaN, and so begins as w.
MLX_OPT_FN float weight_of(float w, float master, float rounded) {
  return w == rounded ? master : w;
}

// A bfloat16 and the remainder, a whole number.
struct Split {
  float w, remainder;
};

// The bfloat16 nearest to a weight, of two the larger in size, and the last 16 bits of the weight.
// These say where the weight is from there, so they lose nothing. A NaN stays one.
MLX_OPT_FN Split split(float weight) {
  unsigned bits = weight == weight ? static_cast<unsigned>(as_int(weight)) : 0x7fc00000u;
  return {
      as_float(static_cast<int>((bits + 0x8000u) & 0xffff0000u)),
      static_cast<float>(static_cast<int>(bits & 0xffffu))};
}

// The weight of a bfloat16 w with that remainder. If something else has written w since, it is a
// weight that rounds to w. If w is 0, infinite or NaN there may be none, and it is w.
MLX_OPT_FN float joined(float w, float remainder) {
  unsigned low = static_cast<unsigned>(static_cast<int>(remainder));
  unsigned bits = static_cast<unsigned>(as_int(w)) + low - (low < 0x8000u ? 0u : 0x10000u);
  float weight = as_float(static_cast<int>(bits));
  return weight == weight ? weight : w;
}

// A rule that updates the master in the place of the parameter. Format: the parameter's; storing
// the parameter rounds the new master.
template <typename Rule, typename Format>
struct WithMaster {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::Scalars;
  struct Element {
    typename Rule::Element of_rule;
    float master;
  };

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    float rounded = Format::widen(Format::narrow(e.master));
    e.of_rule.w = weight_of(e.of_rule.w, e.master, rounded);
    e.of_rule = Rule::update(e.of_rule, g, h, s);
    e.master = e.of_rule.w;
    return e;
  }

  MLX_OPT_FN float weight_in(Element e) {
    return e.master;
  }
};

// A rule of weights that have remainders.
template <typename Rule>
struct WithRemainder {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::Scalars;
  struct Element {
    typename Rule::Element of_rule;
    float remainder;
  };

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    e.of_rule.w = joined(e.of_rule.w, e.remainder);
    e.of_rule = Rule::update(e.of_rule, g, h, s);
    Split parts = split(e.of_rule.w);
    e.of_rule.w = parts.w;
    e.remainder = parts.remainder;
    return e;
  }

  MLX_OPT_FN float weight_in(Element e) {
    return joined(e.of_rule.w, e.remainder);
  }
};

MLX_OPT_RULES_END
