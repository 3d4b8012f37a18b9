// A step over the parts of an optimizer.
#pragma once

#include <vector>

#include "bindings/part.h"

namespace mlx_opt::python {

/// Updates the parameters and the states of all parts: overwrites them where no other reference can
/// observe it, else replaces them. Returns false, having changed nothing, if that would run Python
/// of the model's classes. An exception has changed nothing either. `counters`: the arrays that are
/// evaluated with a step that runs at once, the number of the step first. `notes`: what would undo
/// the step, emptied as soon as it has been made.
bool update(
    const std::vector<Part*>& parts, const std::vector<nb::object>& counters, nb::list notes);

/// Puts the staged slots of all parts into the state and empties `notes`. Runs no Python before
/// that.
void commit(const std::vector<Part*>& parts, nb::list notes);

/// Queues those of `counters`, or of the arrays that they are made of, whose inputs are evaluated,
/// so that the chain of a counter does not grow in a loop that evaluates the model alone.
void evaluate_chains(const std::vector<Part*>& parts, const std::vector<nb::object>& counters);

/// `step` + 1. On the CPU an evaluated number gives an evaluated one: that takes no operation,
/// which the stream's thread would have to be woken for.
nb::object next_number(nb::handle step);

} // namespace mlx_opt::python
