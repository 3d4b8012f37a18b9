// The stage around a rule that keeps an exponential moving average of the weights.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

// The average after a step that gave `weight`. `rate`: 1 minus the decay; if it is 1, the average
// is the weight. An unset average is NaN, and so begins as the weight.
MLX_OPT_FN float averaged(float average, float weight, float rate) {
  float next = average + rate * (weight - average);
  return average == average && rate < 1.0f ? next : weight;
}

// A rule of parameters that have no master weight, whose weight is the parameter as it is stored in
// Format.
template <typename Rule, typename Format>
struct AsStored {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::Scalars;
  using Element = typename Rule::Element;

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    return Rule::update(e, g, h, s);
  }

  MLX_OPT_FN float weight_in(Element e) {
    return Format::widen(Format::narrow(e.w));
  }
};

// A rule that updates the average too, with its rate behind the hyperparameters. Weighted:
// AsStored, WithMaster or WithRemainder; to prepare the scalars, the rule itself.
template <typename Weighted>
struct WithEma {
  struct Hypers {
    typename Weighted::Hypers of_rule;
    Hyper rate;
  };
  using Scalars = typename Weighted::Scalars;
  struct Element {
    typename Weighted::Element of_rule;
    float average;
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float step) {
    return Weighted::prepare(h.of_rule, lr, step);
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    e.of_rule = Weighted::update(e.of_rule, g, h.of_rule, s);
    e.average = averaged(e.average, Weighted::weight_in(e.of_rule), h.rate.value);
    return e;
  }
};

MLX_OPT_RULES_END
