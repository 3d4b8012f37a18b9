// A step over the parts of an optimizer.
#pragma once

#include <vector>

#include "bindings/part.h"

namespace mlx_opt::python {

/// Updates the parameters and the states of all parts: overwrites them where no other reference can
/// observe it, else replaces them. Returns false, having changed nothing, if that would run Python
/// of the model's classes. An exception has changed nothing either. `counters`: the arrays that are
/// evaluated with a step that runs at once, the number of the step first.
bool update(const std::vector<Part*>& parts, const std::vector<nb::object>& counters);

/// Queues those of `counters`, or of the arrays that they are made of, whose inputs are evaluated,
/// so that the chain of a counter does not grow in a loop that evaluates the model alone.
void evaluate_chains(const std::vector<Part*>& parts, const std::vector<nb::object>& counters);

} // namespace mlx_opt::python
