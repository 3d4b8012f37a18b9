// Runs a step over the parts of an optimizer.
#pragma once

#include <vector>

#include "bindings/part.h"

namespace mlx_opt::python {

/// Updates the parameters and the states of all parts: overwrites them if no other reference can
/// observe it, else replaces them. Returns false and changes nothing if that would run Python code
/// of the model's classes. An exception changes nothing either. `counters`: arrays that are
/// evaluated with an eager step, the number of the step first. `notes`: the notes that would undo
/// the step, emptied as soon as it is made.
bool update(
    const std::vector<Part*>& parts, const std::vector<nb::object>& counters, nb::list notes);

/// Computes the results of all parts, lazily, and holds them in the parts; runs the formulas.
void stage(const std::vector<Part*>& parts);

/// Puts the staged slots of all parts into the state and empties `notes`. Runs no Python code
/// before that.
void commit(const std::vector<Part*>& parts, nb::list notes);

/// Queues the counters, or the arrays that they depend on, whose inputs are evaluated, so that a
/// counter's graph does not grow in a loop that evaluates only the model.
void evaluate_chains(const std::vector<Part*>& parts, const std::vector<nb::object>& counters);

/// `step` + 1. On the CPU the result for an evaluated number is evaluated too: that needs no
/// operation, for which the stream's thread would have to be woken.
nb::object next_number(nb::handle step);

} // namespace mlx_opt::python
