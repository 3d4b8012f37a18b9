// The leaves of a step, between Python's trees and libmlx_opt's flat list of operands.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"

namespace mlx_opt::python {

namespace nb = nanobind;

/// Where in the tree a leaf is; a link on the stack for each level.
struct Path {
  const Path* parent;
  nb::handle key;

  std::string text() const;
};

/// The scalars of a step, as mlx_opt::step and step_in_place take them.
struct StepScalars {
  const std::vector<Scalar>& hypers;
  const mx::array& learning_rate;
  mx::array& step;
  const std::optional<GradientScale>& scale;
};

/// The leaves of a tree of gradients with their parameters and states. Building one checks the
/// trees and changes nothing; so an error leaves model and state as they were.
class Batch {
 public:
  /// `moments`: names of the state's arrays, in the rule's order. `factored`: unless empty, the
  /// names of the two that stand for the first of these where a parameter has two dimensions or
  /// more, one of its rows and one of its columns. Where `initialized` is false a leaf may lack
  /// state.
  Batch(
      nb::object gradients,
      nb::handle parameters,
      nb::handle state,
      std::vector<nb::str> moments,
      bool initialized,
      std::vector<nb::str> factored);

  /// Runs a step of `rule` that overwrites the parameters and moments, the Python objects remaining
  /// the same, if nobody can tell: all gradients are evaluated, and nothing but the trees refers to
  /// a parameter, a moment or its buffer. Returns false, having changed nothing, where it cannot.
  bool update_in_place(const std::string& rule, const StepScalars& scalars);

  /// Runs a step of `rule`, puts the new moments into the state and returns the tree of new
  /// parameters. A leaf that the primitives do not serve goes through `formula(gradient, parameter,
  /// state)`, which has to see to the scale itself.
  nb::object update(const std::string& rule, const StepScalars& scalars, nb::handle formula);

  /// The same, but puts the new parameters into the tree of the old ones.
  void assign(const std::string& rule, const StepScalars& scalars, nb::handle formula);

 private:
  struct Leaf {
    nb::object gradient;
    nb::object parameter;
    nb::object state;
    nb::object container; // of the parameter
    nb::object key;       // of the parameter in it
    bool factored;
    bool fused;
  };

  void collect(
      nb::handle gradients,
      nb::handle parameters,
      nb::handle state,
      nb::handle container,
      const Path* path);
  void collect_leaf(
      nb::handle gradient,
      nb::handle parameter,
      nb::handle state,
      nb::handle container,
      const Path* path);
  bool collect_moments(
      nb::handle state, const mx::array& parameter, bool factored, const Path* path);
  const std::vector<nb::str>& moments_of(bool factored) const;
  size_t count_fused(bool factored) const;
  void push_operands(bool factored, std::vector<mx::array>& operands) const;
  std::vector<mx::array> operands() const;
  bool push_unshared(bool factored, std::vector<mx::array*>& operands) const;
  std::vector<mx::array*> unshared_operands() const;
  std::vector<mx::array> step(
      const std::string& rule, const StepScalars& scalars, std::vector<mx::array> operands) const;
  bool overwrite(const std::string& rule, const StepScalars& scalars, mx::Stream stream) const;
  std::vector<nb::object> successors(
      const std::string& rule, const StepScalars& scalars, nb::handle formula);
  nb::object rebuilt(nb::handle tree, const std::vector<nb::object>& updated, size_t& next) const;

  nb::object gradients_;
  std::vector<nb::str> moments_;
  std::vector<nb::str> factored_moments_; // of factored parameters
  bool factors_;
  bool initialized_;
  bool available_;
  std::vector<Leaf> leaves_;
};

} // namespace mlx_opt::python
