// A part of a step: the leaves of Python's trees that one program updates, held and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <nanobind/nanobind.h>

#include "bindings/tree.h"
#include "mlx_opt/eager/in_place.h"

namespace mlx_opt::python {

/// A group of a part's leaves: its settled scalars, and the formula for leaves that the primitives
/// do not support. `formula(gradient, parameter, state)` returns the new parameter and changes
/// `state`, a copy.
struct PartGroup {
  GroupScalars scalars;
  nb::object formula;
};

/// The groups of leaves by path. `tree`: a tree of dicts, by the keys of the gradients' tree, with
/// an index of `positions` for each leaf; None if all leaves are in the part's first group.
struct Assignment {
  static constexpr int other_part = -1; // the leaf is updated by another part
  static constexpr int unchanged = -2;  // the leaf is not updated

  nb::object tree;
  std::vector<int> positions; // a group of the part, or one of the values above
};

/// Collecting may run Python code of the trees' classes, and changes nothing. From then on the part
/// holds every leaf by object, so a tree that changes takes no array away.
class Part {
 public:
  /// `initialized`: true if every leaf must have state. `assigned`: true if the results go into the
  /// parameters' tree. `fused`: false if the formulas update all leaves.
  Part(
      const Program& program,
      std::vector<PartGroup> groups,
      Assignment assignment,
      nb::object gradients,
      nb::object parameters,
      nb::object state,
      bool initialized,
      bool assigned,
      bool fused);

  /// Finds the leaves and checks them on the first call.
  void collect();

  bool is_collected() const {
    return collected_;
  }

  /// True if collecting ran no Python code, so that nothing changed meanwhile.
  bool is_plain() const {
    return plain_;
  }

  /// Sets the scale of the gradients. `around(formula)` is the formula that applies it too.
  void clip(GradientScale scale, nb::object around) {
    scale_ = std::move(scale);
    around_ = std::move(around);
  }

  /// Asks for the norms of each group's updates and new weights, which the step makes the value of
  /// `norms`, an array of Python's: float32, {groups, 2}.
  void take_norms(nb::object norms) {
    norms_ = std::move(norms);
  }

  /// True if a transformation traces any of the gradients.
  bool has_tracer() const;

  /// The gradients of all leaves.
  std::vector<mx::array> gradients();

  /// For each group the sums over its leaves that the rule needs, of those that the kernels update;
  /// empty if there are none.
  std::vector<std::vector<mx::array>> sums(bool by_operations = false);

  /// The group, the gradient, the parameter and the state of each leaf that the formula updates.
  std::vector<std::tuple<int, mx::array, mx::array, nb::object>> unserved();

  /// True if the trees' classes and the dtypes permit the step to overwrite the arrays.
  bool may_overwrite() const;

  /// True if results can be put into the parameters' tree without running Python code.
  bool is_assignable() const {
    return assignable_;
  }

  /// True if every parameter and slot is still where it was found.
  bool is_in_place() const;

  /// True if each parameter and slot is referred to only by one place in the trees and this part.
  bool is_unshared() const;

  /// The part in the form that run_in_place takes.
  mlx_opt::Part in_place();

  /// Leaves everything to the formula that the kernels cannot update. Follows collect().
  void settle_served();

  /// Holds the results of the kernels, in the order of the part's leaves in `in_place`.
  void take(std::vector<mx::array> outputs);

  /// Runs the formula for the leaves that the kernels do not update, and holds the results.
  void stage_formula();

  /// The staged parameters in a tree with the gradients' structure. May run Python code of the
  /// classes of its tuples. Throws std::logic_error if nothing is staged.
  nb::object tree();

  /// Puts the staged slots into the state, and the norms into their array. Runs no Python code.
  void commit();

  /// The same of the norms of a part that ran in place.
  void put_norms();

  /// Puts the staged parameters into their tree. Runs no Python code.
  void assign();

 private:
  struct Leaf {
    nb::object gradient;
    nb::object parameter;
    nb::object state;
    nb::object container; // that holds the parameter
    nb::object key;       // of the parameter in the container
    size_t first_slot;    // index in slots_
    uint16_t kind;
    uint16_t group;
    bool served;
    uint32_t rounding_key; // if the program rounds stochastically
  };

  // A container of the gradients' tree, which its children follow, or a leaf.
  struct Node {
    nb::object key;   // null for a leaf, which has its own
    nb::object type;  // null for a leaf
    nb::object value; // the result for a leaf that the part does not update; else null
    size_t children;
  };

  struct Entry {
    nb::object dict, key, value;
  };

  // A parameter or slot from the kernels, and its place. The leaf holds the handles.
  struct Successor {
    size_t leaf;
    nb::handle container, key;
    nb::handle before; // what was found there
    mx::array array;
    nb::object object; // the array as Python's; null until it is needed
  };

  bool walk(
      nb::handle gradients,
      nb::handle parameters,
      nb::handle state,
      nb::handle container,
      nb::handle groups,
      const Path* path);
  bool add_leaf(
      nb::handle gradient,
      nb::handle parameter,
      nb::handle state,
      nb::handle container,
      int group,
      const Path* path);
  void collect_leaf(
      nb::handle gradient,
      nb::handle parameter,
      nb::handle state,
      nb::handle container,
      uint16_t group,
      const Path* path);
  int group_of(nb::handle gradient, nb::handle groups, const Path* path) const;
  bool collect_slots(nb::handle state, size_t kind, const Path* path);
  bool has_arrays(const Leaf& leaf) const;
  uint32_t key_of(const Path* path) const;
  void leave_shared_state_to_the_formula();
  void push_operands(const Leaf& leaf, std::vector<mx::array*>& operands);
  const Leaves& leaves();
  Request request();
  void stage_norms();
  std::pair<mx::array, mx::array> weights_of(size_t i) const;
  bool is_traced();
  bool has_real_scale() const;
  static const nb::object& object_of(Successor& successor);
  static void put(Successor& successor);
  nb::object rebuilt(size_t& node, size_t& leaf) const;

  Program program_;
  std::vector<PartGroup> groups_;
  Assignment assignment_;
  std::optional<GradientScale> scale_;
  nb::object around_;                     // null if the gradients are not scaled
  nb::object norms_;                      // null if they are not asked for
  std::optional<mx::array> staged_norms_; // of the leaves that the kernels update, then of all
  bool initialized_;
  bool assigned_;
  bool available_;
  bool may_overwrite_;
  bool collected_ = false;
  bool staged_ = false;
  bool assignable_ = true;
  bool plain_ = true;
  nb::object gradients_, parameters_, state_;    // until they are collected
  std::vector<std::vector<nb::str>> slot_names_; // of each kind
  std::vector<Leaf> leaves_;
  std::vector<nb::object> slots_;       // of all leaves
  std::vector<mx::array*> operands_;    // of the leaf that is being checked
  std::optional<Leaves> served_leaves_; // once they are asked for
  std::vector<Node> nodes_;
  std::vector<Successor> new_parameters_, new_slots_; // staged, from the kernels
  std::vector<nb::object> results_; // the formula's parameters, and once there is a tree all
  std::vector<Entry> entries_;      // of the formula's states
};

} // namespace mlx_opt::python
