// What the passes of a rule of two passes read and write, which the functions of the rule say.
// With `update_state` the first pass updates the state, and what follows takes the state as it is
// stored; without it the second pass updates the parameter and the state. `sums` and `update` take
// the gradient after the element if they read it.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

template <typename...>
struct VoidOf {
  using Type = void;
};

template <typename Rule, typename = void>
struct FirstPass {
  enum : int { updates_state = 0 };
};

template <typename Rule>
struct FirstPass<
    Rule,
    typename VoidOf<decltype(Rule::update_state(
        typename Rule::Element{}, 0.0f, typename Rule::Hypers{}, typename Rule::Scalars{}))>::
        Type> {
  enum : int { updates_state = 1 };
};

template <typename Rule, typename = void>
struct SecondPass {
  enum : int { reads_gradient = 1 };
};

template <typename Rule>
struct SecondPass<
    Rule,
    typename VoidOf<decltype(Rule::update(
        typename Rule::Element{},
        typename Rule::Hypers{},
        typename Rule::Scalars{},
        typename Rule::Rates{}))>::Type> {
  enum : int { reads_gradient = 0 };
};

// A bit for each field of the element that the first pass reads: all, unless the rule has
// `first_pass_reads`.
template <typename Rule, typename = void>
struct FirstPassReads {
  enum : unsigned { fields = 0xffffffffu };
};

template <typename Rule>
struct FirstPassReads<Rule, typename VoidOf<decltype(Rule::first_pass_reads)>::Type> {
  enum : unsigned { fields = Rule::first_pass_reads };
};

// The element after the first pass. The last argument, an int, prefers the first overload.
template <typename Rule, typename Element, typename Hypers, typename Scalars>
MLX_OPT_FN auto after_first_pass(Element e, float g, Hypers h, Scalars s, int)
    -> decltype(Rule::update_state(e, g, h, s)) {
  return Rule::update_state(e, g, h, s);
}

template <typename Rule, typename Element, typename Hypers, typename Scalars>
MLX_OPT_FN Element after_first_pass(Element e, float, Hypers, Scalars, long) {
  return e;
}

// What an element adds to the tensor's sums.
template <typename Rule, typename Element, typename Hypers, typename Scalars>
MLX_OPT_FN auto sums_of(Element e, float g, Hypers h, Scalars s)
    -> decltype(Rule::sums(e, g, h, s)) {
  return Rule::sums(e, g, h, s);
}

template <typename Rule, typename Element, typename Hypers, typename Scalars>
MLX_OPT_FN auto sums_of(Element e, float, Hypers h, Scalars s) -> decltype(Rule::sums(e, h, s)) {
  return Rule::sums(e, h, s);
}

MLX_OPT_RULES_END
