// A part of a step: the leaves of Python's trees that one program updates, held and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <nanobind/nanobind.h>

#include "bindings/tree.h"
#include "mlx_opt/eager/in_place.h"

namespace mlx_opt::python {

/// The scalars of a step, settled: nothing asks the optimizer for them again.
struct Settled {
  GroupScalars scalars;
  std::optional<GradientScale> scale;
};

/// Collecting runs Python of the trees' classes, and changes nothing. From then on the part holds
/// every leaf by object, so whatever happens to the trees cannot take an array away.
class Part {
 public:
  /// `formula(gradient, parameter, state)` serves the leaves that the primitives do not: it returns
  /// the new parameter and changes `state`, a copy. `initialized`: true if every leaf must have
  /// state. `assigned`: true if the results go into the parameters' tree. `fused`: false if the
  /// formula serves all leaves.
  Part(
      const Program& program,
      Settled settled,
      nb::object formula,
      nb::object gradients,
      nb::object parameters,
      nb::object state,
      bool initialized,
      bool assigned,
      bool fused);

  /// Finds the leaves and checks them, the first time that it is called.
  void collect();

  bool is_collected() const {
    return collected_;
  }

  /// True if collecting ran no Python, so that nothing has changed between its first leaf and its
  /// end.
  bool is_plain() const {
    return plain_;
  }

  /// Sets what the gradients are multiplied with, and a formula that does it too.
  void clip(GradientScale scale, nb::object formula) {
    settled_.scale = std::move(scale);
    formula_ = std::move(formula);
  }

  /// True if a transformation traces any of the gradients.
  bool has_tracer() const;

  /// The gradients of all leaves.
  std::vector<mx::array> gradients();

  /// True if the step may overwrite the arrays, as far as the trees' classes and the dtypes go.
  bool may_overwrite() const {
    return may_overwrite_ && has_real_scale();
  }

  /// True if results can be put into the parameters' tree without running Python.
  bool is_assignable() const {
    return assignable_;
  }

  /// True if every parameter and slot is still where it was found.
  bool is_in_place() const;

  /// True if nothing but one place in the trees, and this part, refers to any parameter or slot.
  bool is_unshared() const;

  /// The part as run_in_place takes it.
  mlx_opt::Part in_place();

  /// Makes the results, lazily, and keeps them; runs the formula. Changes nothing.
  void stage();

  /// The staged parameters in a tree of the gradients' structure. Runs the classes of its tuples.
  nb::object tree() const;

  /// Puts the staged slots into the state. Runs no Python.
  void commit();

  /// Puts the staged parameters into their tree. Runs no Python.
  void assign();

 private:
  struct Leaf {
    nb::object gradient;
    nb::object parameter;
    nb::object state;
    nb::object container; // of the parameter
    nb::object key;       // of the parameter in it
    size_t first_slot;    // among slots_
    size_t kind;
    bool served;
  };

  // A container of the gradients' tree, whose children follow it, or a leaf.
  struct Node {
    nb::object key;  // null for a leaf, which has it itself
    nb::object type; // null for a leaf
    size_t children;
  };

  struct Entry {
    nb::object dict, key, value;
  };

  void walk(
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
  bool collect_slots(nb::handle state, size_t kind, const Path* path);
  bool has_arrays(const Leaf& leaf) const;
  void leave_shared_state_to_the_formula();
  void push_operands(const Leaf& leaf, std::vector<mx::array*>& operands);
  Leaves leaves();
  bool is_traced();
  bool has_real_scale() const;
  nb::object rebuilt(size_t& node, size_t& leaf) const;

  Program program_;
  Settled settled_;
  nb::object formula_;
  bool initialized_;
  bool assigned_;
  bool available_;
  bool may_overwrite_;
  bool collected_ = false;
  bool assignable_ = true;
  bool plain_ = true;
  nb::object gradients_, parameters_, state_;    // until they are collected
  std::vector<std::vector<nb::str>> slot_names_; // of each kind
  std::vector<Leaf> leaves_;
  std::vector<nb::object> slots_;    // of all leaves
  std::vector<mx::array*> operands_; // of the leaf that is being checked
  std::vector<Node> nodes_;
  std::vector<nb::object> results_; // the staged parameters
  std::vector<Entry> entries_;      // the staged slots
};

} // namespace mlx_opt::python
