// An optimizer over named parameters, with a state that Python's reads and writes too.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "mlx_opt/functions.h"

namespace mlx_opt {

/// Arrays by name. mlx.utils.tree_flatten makes such names: "layers.0.weight".
using NamedArrays = std::map<std::string, mx::array>;

/// Updates named parameters, and keeps the state that this takes.
///
///   mlx_opt::Optimizer optimizer(parameters, mlx_opt::AdamW{.weight_decay = 0.1}, 1e-3);
///   ...
///   optimizer.update(parameters, std::move(gradients));
///   mx::eval(mlx_opt::values(parameters), ...);
///
/// An exception leaves the optimizer and the parameters as they were. One object is for one thread
/// at a time.
class MLX_OPT_API Optimizer {
 public:
  /// `parameters`: those to be updated; float32, float16 or bfloat16. Only shapes and dtypes are
  /// noted; the moments begin as zeros.
  ///
  /// Throws std::invalid_argument for a hyperparameter out of its range and for a parameter of
  /// another dtype, std::runtime_error if the running MLX is not the one that this library was
  /// built for.
  Optimizer(const NamedArrays& parameters, Hyperparameters hypers, double learning_rate);

  /// One step: replaces the parameters that have a gradient, and their state, by their successors,
  /// which are lazy. See `mlx_opt::update` for dtypes, and for whose buffers they take. Gradients
  /// of some parameters update these; with none the step is counted all the same.
  ///
  /// Throws std::invalid_argument, with the parameter's name, where a gradient has no parameter or
  /// no state, or another shape than these; std::runtime_error if the device has no backend.
  void update(NamedArrays& parameters, NamedArrays gradients, mx::StreamOrDevice s = {});

  /// Steps done.
  std::uint64_t step() const {
    return step_;
  }

  /// For the next steps. Kept as float32, as by Python's.
  double learning_rate() const {
    return learning_rate_;
  }
  void set_learning_rate(double learning_rate) {
    learning_rate_ = static_cast<float>(learning_rate);
  }

  /// The state as mlx.utils.tree_flatten gives that of Python's optimizer: "step" (uint64, 0-d),
  /// "learning_rate" (float32, 0-d) and for each parameter its arrays, "layers.0.weight.m".
  NamedArrays state() const;

  /// Takes a state of that form.
  ///
  /// Throws std::invalid_argument with the name of the array that is missing, not known, or not of
  /// the shape or dtype that it must be. Moments are of the parameter's shape and float32, float16
  /// or bfloat16.
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
  Hyperparameters hypers_;
  std::vector<std::string_view> names_;
  float learning_rate_;
  std::uint64_t step_ = 0;
  std::map<std::string, Arrays> moments_;
};

/// The arrays without their names, in the order of the names: what mx::eval takes.
MLX_OPT_API Arrays values(const NamedArrays& arrays);

} // namespace mlx_opt
