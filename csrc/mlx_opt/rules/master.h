// A stage around the rules: the weight of a parameter in bfloat16 or float16 is kept in float32, as
// its master, and the parameter is the master's rounding.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// The weight of a parameter w: its master, or w if something else has written w since the last
// step, which is so if w is not the master's rounding. An unset master is NaN, and so begins as w.
MLX_OPT_FN float weight_of(float w, float master, float rounded) {
  return w == rounded ? master : w;
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
};

MLX_OPT_RULES_END
