// What a rule says about itself besides its arithmetic. All that the library, its Python classes,
// their error messages, the documentation and the tests know of a rule's names comes from here.
#pragma once

#include <cstdint>

namespace mlx_opt {

/// The values that a hyperparameter may have.
enum class Range : uint8_t {
  any,
  not_negative,
  positive,
  not_positive,
  below_one,  // from 0 on
  fraction,   // between 0 and 1, and neither
  flag,       // 0 or 1
  decay_kind, // a DecayKind
};

/// The kinds of weight decay, in the order of DecayKind.
inline constexpr const char* decay_kinds[] = {"coupled", "decoupled", "independent", "corrected"};

/// The default of a hyperparameter that limits something, and then does not.
inline constexpr double unlimited = __builtin_huge_val();

struct HyperInfo {
  /// As the optimizer's constructor calls it; "betas[0]" is the first element of `betas`.
  const char* name;
  double standard;
  Range range = Range::any;
  /// True for a number that the rule keeps and users do not set: it begins as `standard`, the
  /// rule's `next` updates it in each step, and the optimizer's state holds it. These are the last
  /// ones, in the order of the rule's `Kept`.
  bool kept = false;
};

/// The shape of a state slot.
enum class Extent : uint8_t {
  elements, // the parameter's
  rows,     // the parameter's without its last dimension
  columns,  // the parameter's without its last but one
  blocks,   // a scale for each block of codes
};

/// The parameters that have a slot.
enum class Owner : uint8_t {
  all,
  matrices, // of two dimensions or more
  vectors,  // of fewer
};

/// How a slot is stored.
enum class Format : uint8_t {
  promoted, // as mlx.optimizers' formulas promote it
  float32,  // whatever the parameter and the gradient are; likewise the others
  float16,
  bfloat16,
  bits16, // uint16: the remainder of a master weight
  int8,   // codes of 8 bits with the scales of their blocks; see codes.h
};

/// In the order of Format.
inline constexpr const char* format_names[] = {
    "promoted", "float32", "float16", "bfloat16", "bits16", "int8"};

/// What a slot holds before the first step of its parameter.
enum class Begin : uint8_t {
  zeros,
  unset, // NaN, for which the rule's first step takes its first value; see `value_or`
};

/// What codes of 8 bits can hold a slot; see codes.h. A slot that has Format::float32 by its rule
/// has none either.
enum class Codes : uint8_t {
  of_any_sign,
  not_negative,
  none, // a step changes it by less than codes can tell apart, or several stages make the step
};

struct SlotInfo {
  const char* name;
  Extent extent = Extent::elements;
  Owner owner = Owner::all;
  /// The option without which the slot is left out; null for a slot that is always there.
  const char* option = nullptr;
  /// True if the slot's dtype is promoted with those of the slots before it.
  bool follows = false;
  /// True if the rule neither reads nor writes the slot; it is there because mlx.optimizers has it.
  bool idle = false;
  Format format = Format::promoted;
  Begin begin = Begin::zeros;
  Codes codes = Codes::of_any_sign;
};

/// What an option must be for a rule to serve its optimizer.
enum class Setting : uint8_t {
  positive,
  off,
  on,
  decoupled, // of the kind of weight decay; holds without decay too
};

struct Condition {
  const char* option;
  Setting setting;
};

/// When a rule reads an input of its step.
struct Reads {
  enum When : uint8_t { always, never, if_set, unless_set } when = always;
  const char* flag = nullptr; // the hyperparameter that decides
};

/// When weight decay is added to the gradient, which then brings the parameter's dtype with it.
struct Coupling {
  enum When : uint8_t { never, always, unless_zero } when = never;
  const char* decay = nullptr; // the hyperparameter that decides
  const char* kind = nullptr;  // the one that must be "coupled" too; null if there is none
};

/// Of a rule that trains between a base iterate and its average: the parameter is
/// (1 - part) * base + part * average.
struct Average {
  const char* base = nullptr; // the slot
  const char* part = nullptr; // the hyperparameter
};

struct Description {
  /// The class of the optimizer that the rule serves.
  const char* optimizer;
  HyperInfo hypers[16] = {};
  SlotInfo slots[8] = {};
  /// Of several rules that serve an optimizer, the first whose conditions hold does.
  Condition when[4] = {};
  Reads step = {Reads::never};
  Reads learning_rate = {Reads::always};
  Coupling coupling = {};
  Average average = {};
  /// True for the rules that most people run. They have loops of their own on the CPU for codes,
  /// for stochastic rounding and for norms; others take these through a block in float32, in less
  /// code.
  bool is_common = false;
};

/// The description of a rule with the hyperparameters and slots of another that serves the same
/// optimizer. `when`: the conditions of this one. `slot`: one that it has besides, if it has a
/// name.
template <int count>
constexpr Description variant_of(
    Description other, const Condition (&when)[count], SlotInfo slot = {}) {
  for (int i = 0; i < count; ++i) {
    other.when[i] = when[i];
  }
  int end = 0;
  while (other.slots[end].name) {
    ++end;
  }
  other.slots[end] = slot;
  other.is_common = false;
  return other;
}

} // namespace mlx_opt
