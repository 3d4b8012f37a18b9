// An optimizer over named parameters, with a state that Python's reads and writes too.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "mlx_opt/api/functions.h"
#include "mlx_opt/types/group.h"
#include "mlx_opt/types/named_arrays.h"
#include "mlx_opt/types/options.h"

namespace mlx_opt {

struct Assignment;
struct Definition;
struct SlotInfo;

/// While it exists parameters are the averages of their weights, and their optimizer makes no step;
/// then they are the very arrays that they were before. `Optimizer::evaluating` begins it. The
/// parameters must exist as long.
class MLX_OPT_API Evaluating {
 public:
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;
  ~Evaluating();

 private:
  friend class Optimizer;
  Evaluating(NamedArrays& parameters, NamedArrays averages, std::shared_ptr<const bool> exists);

  NamedArrays& parameters_;
  NamedArrays before_;
  std::shared_ptr<const bool> exists_; // that the optimizer watches
};

/// Updates named parameters, and keeps the state that this takes.
///
///   mlx_opt::Optimizer optimizer(parameters, mlx_opt::AdamW{.weight_decay = 0.1}, 1e-3);
///   ...
///   mx::eval(mlx_opt::values(gradients));
///   optimizer.update(parameters, std::move(gradients));
///   mx::eval(mlx_opt::values(parameters));
///   mx::eval(optimizer.values());
///
/// An exception leaves the optimizer and the parameters as they were. One object is for one thread
/// at a time. One that was moved from can be assigned to and destroyed; all that reads or changes
/// arrays throws std::logic_error.
class MLX_OPT_API Optimizer {
 public:
  /// `parameters`: those to be updated; float32, float16 or bfloat16. Only shapes and dtypes are
  /// noted; the state begins as `initial_state` makes it. `learning_rate`: only Adafactor with
  /// relative_step, which does not use it, can do without.
  ///
  /// `groups`: of parameters with hyperparameters of their own. `options`: of parameters whose
  /// groups have none; a state that `set_state` takes has the dtypes of `state_dtypes` from the
  /// next step on.
  ///
  /// Throws std::invalid_argument for a hyperparameter out of its range, for a parameter of another
  /// dtype, for a learning rate that is missing, for a dtype that no state has, for a group that
  /// matches nothing or has a value that it cannot have and for options that do not go together or
  /// that a parameter cannot have, which it names; std::runtime_error if the running MLX is not the
  /// one that this library was built for.
  Optimizer(
      const NamedArrays& parameters,
      const Hyperparameters& hypers,
      std::optional<double> learning_rate = std::nullopt,
      const std::vector<Group>& groups = {},
      const Options& options = {});

  /// One step: replaces the parameters that have a gradient, and their state, by their successors.
  /// See `mlx_opt::update` for when it runs, for whose buffers they take, and for dtypes. Gradients
  /// of some parameters update these; with none the step is counted all the same.
  ///
  /// `clip` is of the norm of all gradients together, and done inside the step: the clipped
  /// gradients are never written. Where the step is skipped, parameters, state and step stay as
  /// they were, and `skipped` counts it. Nothing waits for the norm.
  ///
  /// If there are gradients that `accumulate` has added up, these are added to them, and the step
  /// is made with the mean of all calls. `normalizer`: what the gradients are divided by before all
  /// else, such as the number of tokens of which they are a sum; with added gradients the sum of
  /// the normalizers, one for each call, in place of the number of calls. A sum of 0 counts as 1.
  ///
  /// Throws std::invalid_argument, with the parameter's name, where a gradient has no parameter or
  /// no state, or another shape than these, where a parameter has a dtype that needs other arrays
  /// of state than the one that the optimizer was made with, and if max_norm or normalizer is
  /// negative; std::runtime_error if the device has no backend, or in an Evaluating.
  void update(
      NamedArrays& parameters,
      NamedArrays gradients,
      Clip clip = {},
      mx::StreamOrDevice s = {},
      std::optional<double> normalizer = std::nullopt);

  /// Adds gradients to those that are pending, for the next `update`: in place, by SGD's kernel,
  /// where they are evaluated. The sums have the dtypes of the first gradients, so give these as
  /// float32 to add up in float32. They are in the state. Those of frozen parameters are left out.
  ///
  /// Throws std::invalid_argument, with the name, where a gradient has no state or another shape
  /// than its parameter, and if only some calls have a normalizer; std::runtime_error if the
  /// device has no backend, or in an Evaluating. Nothing has changed then.
  void accumulate(
      NamedArrays gradients,
      std::optional<double> normalizer = std::nullopt,
      mx::StreamOrDevice s = {});

  /// The number of calls whose gradients are pending.
  std::uint64_t accumulated() const {
    return pending_.calls;
  }

  /// Steps done. Waits for the last one if it could be skipped, as `skipped` does.
  std::uint64_t step() const {
    return attempts_ - skipped();
  }

  /// Steps that were skipped because the norm of their gradients was not finite.
  std::uint64_t skipped() const;

  /// The global norm of the gradients of the last step that clipped or could be skipped, before
  /// clipping: 0-d, float32, lazy; before the first of these none.
  std::optional<mx::array> grad_norm() const;

  /// For the next steps. Kept as float32, as by Python's.
  ///
  /// Throws std::bad_optional_access if there is none.
  double learning_rate() const {
    return learning_rate_.value();
  }
  void set_learning_rate(double learning_rate) {
    learning_rate_ = static_cast<float>(learning_rate);
  }

  /// The factor by which the program multiplies the loss, against underflow in float16:
  /// Micikevicius et al., arXiv:1710.03740. 0-d, float32, lazy; none until it is set. A step
  /// divides the gradients by it, before max_norm and grad_norm, and is skipped where their norm is
  /// not finite. The scale is then halved; it is doubled after 2000 steps in a row that were not
  /// skipped, and stays from 2^-24 to 2^24. It is in the state.
  std::optional<mx::array> loss_scale() const;

  /// For the next steps; none turns it off. Throws std::invalid_argument if it is not in that
  /// range.
  void set_loss_scale(std::optional<double> value);

  /// The state as mlx.utils.tree_flatten gives that of Python's optimizer: "step" (uint64, 0-d),
  /// "learning_rate" (float32, 0-d) if there is one, the numbers that the rule keeps, as NAdam does
  /// "mu_product" (float32, 0-d), with those of groups as "mlx_opt.groups.NAME.mu_product", and for
  /// each parameter its arrays, "layers.0.weight.m"; and, once they were asked for,
  /// "mlx_opt.grad_norm" (float32, 0-d) and "mlx_opt.skipped" (uint64, 0-d), "mlx_opt.loss_scale"
  /// (float32, 0-d) and "mlx_opt.steps_at_loss_scale" (uint32, 0-d), and what is pending under
  /// "mlx_opt.accumulated".
  NamedArrays state() const;

  /// All arrays of the state, without their names: what mx::eval takes.
  Arrays values() const;

  /// The weights that the optimizer updates, of all parameters given: of those in bfloat16 and
  /// float16 their master weights in float32, the parameter where there is none yet; the others as
  /// they are. Lazy.
  ///
  /// Throws std::invalid_argument, with the name, for a parameter of another shape than its state.
  NamedArrays master_parameters(const NamedArrays& parameters, mx::StreamOrDevice s = {}) const;

  /// The averages of `Options::ema`, in float32: for each of the parameters given, which is its own
  /// average until it has had a step. Those that have none are returned as they are. Lazy.
  ///
  /// Throws std::invalid_argument if the optimizer keeps no averages, and with the name for a
  /// parameter of another shape than its state.
  NamedArrays ema_parameters(const NamedArrays& parameters, mx::StreamOrDevice s = {}) const;

  /// Replaces parameters by their averages, in their dtypes, as long as the result exists:
  ///
  ///   {
  ///     const auto averaged = optimizer.evaluating(parameters);
  ///     ... // evaluate and save the model
  ///   }
  ///
  /// Throws what `ema_parameters` throws, and std::runtime_error in another Evaluating of this
  /// optimizer. The parameters are then as they were.
  [[nodiscard]] Evaluating evaluating(NamedArrays& parameters, mx::StreamOrDevice s = {});

  /// The averages of parameters that such a rule as SGDScheduleFree trains, with which a model is
  /// evaluated and saved. Lazy. Parameters without a state are returned as they are.
  ///
  /// Throws std::invalid_argument if the rule does not average.
  NamedArrays averages(const NamedArrays& parameters, mx::StreamOrDevice s = {}) const;

  /// Takes a state of that form. The entries that are there only once they were asked for may be
  /// missing; "mlx_opt.grad_norm" and "mlx_opt.skipped" may be in the root as earlier versions had
  /// them, and a learning rate that is not used may be there.
  ///
  /// Throws std::invalid_argument with the name of the array that is missing, not known, or not of
  /// the shape or dtype that it must be. State arrays are float32, float16 or bfloat16.
  void set_state(const NamedArrays& state);

  /// Writes the state to a safetensors file; MLX adds the extension to a name without. Python reads
  /// it: optimizer.state = tree_unflatten(list(mx.load(path).items())).
  ///
  /// Throws std::runtime_error if the file cannot be written.
  void save(const std::string& path) const;

  /// Reads the state from a safetensors file, written by `save` or by Python:
  /// mx.save_safetensors(path, dict(tree_flatten(optimizer.state))).
  ///
  /// Throws std::runtime_error with the file's name, and with what `set_state` says, if the file
  /// cannot be read, is damaged, or does not belong to these parameters and this optimizer.
  void load(const std::string& path);

 private:
  struct SlotArrays {
    mx::Shape shape;                           // of the parameter
    const std::vector<const SlotInfo*>* slots; // the program's
    Arrays arrays;
  };

  const Assignment& assignment() const; // of the parameters to groups
  const Definition& definition() const;

  /// The index of a slot in a parameter's arrays; none if it has no such slot.
  static std::optional<size_t> find(const SlotArrays& slots, std::string_view name);

  /// Throws std::runtime_error in an Evaluating.
  void check_takes_gradients() const;

  /// The gradients without those of frozen parameters. Throws std::invalid_argument, with its name,
  /// for one of no parameter, or of another shape.
  NamedArrays trained(NamedArrays gradients) const;

  std::shared_ptr<const Assignment> assignment_; // null after a move
  std::optional<float> learning_rate_;
  std::weak_ptr<const bool> evaluating_;  // expired if there is none
  std::uint64_t attempts_ = 0;            // steps done and skipped
  mx::array step_ = mx::array(attempts_); // those done
  std::optional<mx::array> skipped_;
  std::optional<mx::array> grad_norm_;
  std::optional<LossScale> loss_scale_;
  PendingGradients pending_;
  std::map<std::string, Arrays> kept_; // the rule's numbers, by the keys of combinations
  std::map<std::string, SlotArrays> slots_;
};

/// The arrays without their names, in the order of the names: what mx::eval takes.
MLX_OPT_API Arrays values(const NamedArrays& arrays);

} // namespace mlx_opt
