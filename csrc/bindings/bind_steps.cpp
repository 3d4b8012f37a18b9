#include "bindings/bind_steps.h"

#include <algorithm>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/scalars.h"
#include "bindings/step.h"
#include "mlx_opt/graph/small_step.h"
#include "mlx_opt/graph/stages.h"

namespace mlx_opt::python {

using namespace nb::literals;

namespace {

// Hyperparameters, learning rate, its factor and formula.
using GroupArguments = std::tuple<std::vector<nb::object>, nb::object, float, nb::object>;

std::vector<PartGroup> groups_from(
    const Program& program,
    const std::vector<GroupArguments>& groups,
    nb::handle step,
    const std::vector<std::vector<int>>& splits) {
  if (groups.empty() || groups.size() > UINT16_MAX) {
    throw nb::value_error("groups: expected 1 to 65535");
  }
  std::vector<PartGroup> result;
  result.reserve(groups.size());
  const mx::array number = step_from(step);
  for (const auto& [hypers, learning_rate, rate_scale, formula] : groups) {
    GroupScalars scalars = scalars_from(program, hypers, learning_rate, number);
    scalars.rate_scale = rate_scale;
    result.push_back({std::move(scalars), formula});
  }
  for (size_t i = 0; i < splits.size(); ++i) {
    result.at(i).scalars.split = splits[i];
  }
  return result;
}

std::vector<int> checked_positions(std::vector<int> positions, size_t groups) {
  for (int position : positions) {
    if (position < Assignment::unchanged || position >= static_cast<int>(groups)) {
      throw nb::value_error("positions: there is no such group");
    }
  }
  return positions;
}

// The binding makes a null pointer of None.
const std::vector<Part*>& checked(const std::vector<Part*>& parts) {
  if (std::find(parts.begin(), parts.end(), nullptr) != parts.end()) {
    throw nb::type_error("parts: expected Part, got NoneType");
  }
  return parts;
}

} // namespace

void bind_steps(nb::module_& m) {
  nb::class_<Part>(
      m,
      "Part",
      R"(The leaves of a tree of gradients with their parameters and states, and the scalars of a step.

The first method that needs the leaves finds and checks them, and changes nothing.

Args:
    program: The program that updates the leaves.
    groups: The scalars of each group of leaves: the hyperparameters of the program in order, each
        a number or a 0-d array, and if it has an average, 1 minus its decay; the learning rate, a
        0-d array, or None if the program does not read it; a number that multiplies it; and a
        function, called as ``formula(gradient, parameter, state)`` for leaves that the primitives
        do not serve: other dtypes, other devices, and under a gradient transformation. It returns
        the new parameter and changes ``state``, which is a copy.
    step: The number of this step, from 1.
    gradients: A tree of arrays.
    parameters: A tree that has a leaf of the same shape for each gradient.
    state: A tree that has a dict of arrays for each gradient.
    initialized: True if every leaf must have state.
    assigned: True if the results are put into the tree of parameters.
    fused: True if the primitives update the leaves that they support.
    assignment: A tree of dicts, by the keys of ``gradients``, with an index of ``positions`` for
        each leaf. None if all leaves are in the first group.
    positions: Numbers of groups; -1 for leaves that another part updates, -2 for leaves that are
        not updated.
    splits: For each group the numbers of rows of the blocks of Muon's matrices; one number is that
        of blocks of equal size. Empty if no group has any.

Raises:
    KeyError: A gradient has no parameter or no state.
    TypeError: A gradient, a parameter or a scalar has a wrong type.
    ValueError: The shapes of a leaf differ.)")
      .def(
          "__init__",
          [](Part* self,
             const Program& program,
             const std::vector<GroupArguments>& groups,
             nb::handle step,
             nb::object gradients,
             nb::object parameters,
             nb::object state,
             bool initialized,
             bool assigned,
             bool fused,
             nb::object assignment,
             std::vector<int> positions,
             const std::vector<std::vector<int>>& splits) {
            new (self) Part(
                program,
                groups_from(program, groups, step, splits),
                {std::move(assignment), checked_positions(std::move(positions), groups.size())},
                std::move(gradients),
                std::move(parameters),
                std::move(state),
                initialized,
                assigned,
                fused);
          },
          "program"_a,
          "groups"_a,
          "step"_a,
          "gradients"_a,
          "parameters"_a,
          "state"_a.none(),
          "initialized"_a = true,
          "assigned"_a = false,
          "fused"_a = true,
          "assignment"_a.none() = nb::none(),
          "positions"_a = std::vector<int>(),
          "splits"_a = std::vector<std::vector<int>>())
      .def("collect", &Part::collect, "Finds the leaves and checks them; changes nothing.")
      .def(
          "clip",
          [](Part& self,
             const mx::array& scale,
             bool skip_nonfinite,
             nb::object around,
             std::optional<mx::array> max_value) {
            self.clip({scale, skip_nonfinite, std::move(max_value)}, std::move(around));
          },
          "scale"_a,
          "skip_nonfinite"_a,
          "around"_a,
          "max_value"_a.none() = nb::none(),
          R"(Sets the scale of the gradients.

Args:
    scale: A 0-d array that each gradient is multiplied with in float32 before the rule sees it.
    skip_nonfinite: True if the step is skipped if ``scale`` is not finite.
    around: Called with a group's formula; returns one that does the same to its gradients.
    max_value: A 0-d array; each element is then clipped to at most this from 0.)")
      .def(
          "take_norms",
          &Part::take_norms,
          "norms"_a,
          R"(Asks for the norms of the updates and of the new weights.

Args:
    norms: An array of the program's own. The step replaces its value, lazily, by a float32 array
        with a row for each group: the norm of the updates and that of the weights after them.)")
      .def("gradients", &Part::gradients, "The gradients of all leaves.")
      .def(
          "sums",
          &Part::sums,
          "by_operations"_a = false,
          R"(The sums that a rule over all tensors needs before its step.

Args:
    by_operations: Compute them by MLX's own operations, as on a GPU. For tests.

Returns:
    For each group the sums over its leaves, 0-d arrays, of the leaves that the primitives update;
    an empty list if there are none.)")
      .def(
          "unserved",
          &Part::unserved,
          "The group, gradient, parameter and state of each leaf that the formula updates.")
      .def("tree", &Part::tree, "The staged parameters, with the structure of the gradients.")
      .def("commit", &Part::commit, "Puts the staged slots into the state.");

  m.def(
      "update",
      [](const std::vector<Part*>& parts, const std::vector<nb::object>& counters, nb::list notes) {
        return update(checked(parts), counters, notes);
      },
      "parts"_a,
      "counters"_a,
      "notes"_a,
      R"(Updates the parameters and the states of all parts.

Overwrites them if no other reference can observe it, else replaces them. An exception changes
nothing.

Args:
    parts: The parts of a step, made with ``assigned=True``.
    counters: Arrays that are evaluated with a step that runs at once; the first, the number of the
        step, may be left an equal, lazy one.
    notes: The notes that would undo the step; emptied when the step is made.

Returns:
    True if the step was made. False, with nothing changed, if the model has its own
    ``__setitem__``.)");
  m.def(
      "is_assigned",
      is_assigned,
      "assignment"_a,
      "tree"_a,
      "True if ``assignment``, a tree of dicts by the keys of ``tree``, has an int for each leaf.");
  m.def(
      "set_small_step",
      set_small_step,
      "elements"_a = default_small_step,
      R"(Sets the size up to which a step on the CPU runs on the calling thread. For tests.

Args:
    elements: The maximum number of elements of all its parameters; 0 to queue every step.)");
  m.def(
      "set_stage_bytes",
      set_stage_bytes,
      "bytes"_a = default_stage_bytes,
      R"(Sets the least bytes of gradients that a stage of a step in a graph has. For tests.)");
  m.def(
      "next_number",
      next_number,
      "step"_a,
      "``step + 1``; evaluated if the CPU is the default device and ``step`` is evaluated.");
  m.def(
      "stage",
      [](const std::vector<Part*>& parts) { stage(checked(parts)); },
      "parts"_a,
      "Computes the results of all parts, lazily, and holds them in the parts; changes nothing "
      "else.");
  m.def(
      "commit",
      [](const std::vector<Part*>& parts, nb::list notes) { commit(checked(parts), notes); },
      "parts"_a,
      "notes"_a,
      R"(Puts the staged slots of all parts into the state.

Args:
    parts: The staged parts of a step.
    notes: As for :func:`update`.)");
  m.def(
      "evaluate_chains",
      [](const std::vector<Part*>& parts, const std::vector<nb::object>& counters) {
        evaluate_chains(checked(parts), counters);
      },
      "parts"_a,
      "counters"_a,
      "Queues the counters, or the arrays that they depend on, whose inputs are evaluated.");
}

} // namespace mlx_opt::python
