// What a step runs: a rule with its options settled, and the state slots that the options imply.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/rules/codes.h"
#include "mlx_opt/step/descriptions.h"
#include "mlx_opt/types/export.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/master_weights.h"

namespace mlx_opt {

namespace mx = mlx::core;

class Composition;

/// The slots of a parameter, in the order of the rule's operands.
using Slots = std::vector<const SlotInfo*>;

/// True if parameters of the dtype have such a master weight.
inline bool has(MasterWeights masters, mx::Dtype dtype) {
  return (masters != MasterWeights::none && dtype == mx::bfloat16) ||
         (masters == MasterWeights::float32 && dtype == mx::float16);
}

/// Formats of slots by their names.
using Formats = std::map<std::string, Format>;

/// Parameters of fewer elements have no codes: their slots of Format::int8 are float32.
inline constexpr size_t min_coded_size = 4096;

/// The elements of a block of codes.
inline constexpr int coded_block = MLX_OPT_LEVEL::elements_of_block;

/// The slots of a rule whose formats its description does not say.
struct OwnSlots;

class MLX_OPT_API Program {
 public:
  /// `with_options`: true if optional slots are present. `composition`: the stages around the rule,
  /// if the step has several. `formats`: of slots that are not stored as the rule's description
  /// says; if there are any or none, but not if it is nullopt, the parameter keeps its dtype.
  explicit Program(
      Rule rule,
      bool with_options = false,
      std::shared_ptr<const Composition> composition = nullptr,
      const std::optional<Formats>& formats = std::nullopt);

  /// The same program for parameters whose float32 weights are kept so.
  Program with(MasterWeights masters) const;

  /// The same program with results in bfloat16 rounded stochastically. Parameters keep their
  /// dtypes. Throws std::invalid_argument with master weights.
  Program with_rounding(uint64_t seed) const;

  /// The program that rounds to nearest.
  Program without_rounding() const;

  /// The same program with an average of each parameter's weights. Throws std::invalid_argument if
  /// slots are stored in codes.
  Program with_ema() const;

  Rule rule() const {
    return rule_;
  }

  /// Number of hyperparameters: the rule's, and behind them, if there is an average, its rate.
  size_t hypers() const {
    return hypers_of(rule_).size() + has_ema_;
  }

  const Composition* composition() const {
    return composition_.get();
  }

  /// True if a parameter keeps its dtype, whatever that of its gradient and its slots.
  bool keeps_parameter() const {
    return keeps_parameter_;
  }

  /// True if one step can update the leaves of both programs, whose compositions are the same.
  bool is_like(const Program& other) const;

  MasterWeights masters() const {
    return masters_;
  }

  /// The seed of stochastic rounding; nullopt if results are rounded to nearest.
  const std::optional<uint64_t>& rounding_seed() const {
    return rounding_seed_;
  }

  /// The key of the random bits of a parameter with that path; 0 if results are rounded to nearest.
  uint32_t rounding_key(std::string_view path) const;

  /// The program that updates the weights themselves, as if they were the parameters.
  Program without_masters() const;

  bool has_ema() const {
    return has_ema_;
  }

  /// The program without the average.
  Program without_ema() const;

  /// True if a single primitive makes the whole step, which may then overwrite its operands.
  bool is_fused() const {
    const bool has_stages = masters_ != MasterWeights::none || has_ema_ || rounding_seed_;
    // The GPUs' kernels do not average what they round stochastically.
    const bool averages_rounded = has_ema_ && rounding_seed_;
    return !composition_ && (!has_stages || is_elementwise(rule_)) && !averages_rounded;
  }

  /// Number of kinds of parameters that the program distinguishes: those of the rule, which are 1
  /// or 2 (vectors, then matrices), with master weights the same again of parameters that have one,
  /// and with codes all these again of parameters that have some.
  size_t kinds() const {
    return slots_.size();
  }

  size_t kind_of(const mx::array& parameter) const {
    const size_t masters = has(masters_, parameter.dtype()) ? kinds_of_rule_ : 0;
    return (kinds_of_rule_ > 1 && parameter.ndim() >= 2) + masters +
           (has_codes(parameter) ? wide_kinds() : 0);
  }

  /// True if such parameters have a master weight, whose slot comes behind the rule's.
  bool has_master(size_t kind) const {
    return kind % wide_kinds() >= kinds_of_rule_;
  }

  /// Number of arrays of scales of such parameters, which come last.
  int scales(size_t kind) const {
    return scales_of_kinds_[kind];
  }

  /// The slots that the rule reads and writes, the master weight, the average, and the
  /// scales of codes.
  const Slots& slots(size_t kind) const {
    return slots_[kind];
  }

  /// All slots of a parameter's state: `slots` and those that the rule does not use.
  const Slots& state_slots(const mx::array& parameter) const {
    return state_slots_[kind_of(parameter)];
  }

  /// The same of a parameter of so many dimensions that has neither master weight nor codes.
  const Slots& wide_state_slots(size_t ndim) const {
    return state_slots_[kinds_of_rule_ > 1 && ndim >= 2];
  }

  /// Number of operands of a tensor: the parameter, its slots and the gradient.
  int operands(size_t kind) const {
    return static_cast<int>(slots_[kind].size()) + 2;
  }

 private:
  bool has_codes(const mx::array& parameter) const {
    return scales_ > 0 && parameter.size() >= min_coded_size && is_storage(parameter.dtype());
  }

  // Number of kinds of parameters that have no codes.
  size_t wide_kinds() const {
    return kinds_of_rule_ * (masters_ == MasterWeights::none ? 1 : 2);
  }

  void set_kinds();

  Rule rule_;
  std::shared_ptr<const Composition> composition_;
  MasterWeights masters_ = MasterWeights::none;
  std::optional<uint64_t> rounding_seed_;
  bool has_ema_ = false;
  bool with_options_;
  bool keeps_parameter_;
  std::shared_ptr<const OwnSlots> own_slots_; // if they differ from the rule's
  size_t kinds_of_rule_;
  int scales_ = 0; // slots of scales in the state of a parameter that has codes
  std::vector<Slots> slots_, state_slots_; // of each kind
  std::vector<int> scales_of_kinds_;       // in `slots_`
};

/// The slot of a master weight that is not none.
MLX_OPT_API const SlotInfo& master_slot(MasterWeights masters);

/// The slot of the average of a parameter's weights.
MLX_OPT_API const SlotInfo& ema_slot();

/// True if a parameter's slots have one for its master weight.
MLX_OPT_API bool has_master(const Slots& slots);

/// Throws std::invalid_argument with a message that names the rule.
[[noreturn]] MLX_OPT_API void refuse(Rule rule, const std::string& what);

/// The shape of a slot of a parameter.
MLX_OPT_API mx::Shape slot_shape(const SlotInfo& slot, const mx::Shape& parameter);

/// The initial dtype of a slot of a parameter.
MLX_OPT_API mx::Dtype slot_dtype(const SlotInfo& slot, mx::Dtype parameter);

/// The arrays of a parameter's state before the first step, in the order of `state_slots`.
MLX_OPT_API std::vector<mx::array> initial_state(
    const Program& program, const mx::array& parameter);

/// Describes what is wrong with a hyperparameter's value, as "expected ..., got ..."; empty if it
/// is valid.
MLX_OPT_API std::string range_problem(const HyperInfo& hyper, double value);

} // namespace mlx_opt
