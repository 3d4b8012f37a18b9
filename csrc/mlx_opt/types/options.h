// What an Optimizer of the C++ interface stores, and does besides its rule.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "mlx/dtype.h"
#include "mlx_opt/types/master_weights.h"

namespace mlx_opt {

/// How an optimizer stores its state: dtypes that are float32, float16, bfloat16 or int8. Where
/// they are given the parameters keep their dtypes, whatever those of their gradients and state.
/// With int8 a slot has codes of 8 bits, with scales beside it: docs/8-bit-states.md.
struct StateDtypes {
  /// Of all slots but those that the rule stores in float32, as AdEMAMix does m2.
  std::optional<mlx::core::Dtype> all = std::nullopt;
  /// Of slots by the names that docs/rules gives them: {"v", mx::float32}.
  std::map<std::string, mlx::core::Dtype> of = {};
};

/// The decay of an average in its first steps; s: the number of steps that it averaged.
enum class EmaWarmup {
  none,
  ratio, // at most (1 + s) / (10 + s)
  power, // at most 1 - (1 + s)^-power
};

/// An exponential moving average of the weights: docs/ema.md.
struct Ema {
  double decay = 0.0; // in [0, 1); if it is 0 there is no average
  EmaWarmup warmup = EmaWarmup::none;
  double power = 2.0 / 3.0;       // of EmaWarmup::power; in (0, 1]
  std::uint64_t update_after = 0; // steps that are not averaged
};

/// What an Optimizer, or a Group of its parameters, stores and does besides the rule.
struct Options {
  StateDtypes state_dtypes = {};
  /// The float32 weights of parameters in bfloat16 and float16, which the rule updates; parameters
  /// are their rounding, keep their dtypes and have a state in float32. MasterWeights::float32: in
  /// the slot "master" (float32). If a parameter is not the rounding of its master, something else
  /// has written it, and the next step takes what was written. MasterWeights::remainder: in the
  /// slot "remainder" (uint16) of bfloat16 parameters the 16 bits that these lack; a parameter that
  /// is written keeps them. docs/master-weights.md.
  MasterWeights master_weights = MasterWeights::none;
  /// If given, results in bfloat16 are rounded stochastically, and parameters keep their dtypes.
  /// The random bits depend on this, the step, the parameter's name and the element's index alone,
  /// and are Python's. It is not in the state. Not with master weights.
  /// docs/stochastic-rounding.md.
  std::optional<std::uint64_t> rounding_seed = std::nullopt;
  /// The average of the parameters as they are stored, or of their master weights, in the slot
  /// "ema" (float32). Not with a state in int8.
  Ema ema = {};
};

} // namespace mlx_opt
