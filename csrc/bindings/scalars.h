// Converts Python's scalars.
#pragma once

#include <string>
#include <vector>

#include "bindings/tree.h"
#include "mlx_opt/graph/request.h"

namespace mlx_opt::python {

/// Converts a number, or an object that converts to one, such as a NumPy scalar. Throws TypeError
/// with a message that begins with `name`.
double number_from(const std::string& name, nb::handle given);

/// Converts a hyperparameter's value: the name of a kind of weight decay, or a number. Throws
/// TypeError or ValueError with a message that begins with `name`.
double hyper_from(const HyperInfo& hyper, const std::string& name, nb::handle given);

/// Converts the number of a step, a whole number or an array. Throws TypeError or ValueError.
mx::array step_from(nb::handle given);

/// Converts the scalars of a step: a hyperparameter is a number or a 0-d array, the learning rate
/// an array or None. Throws TypeError or ValueError that names the wrong one.
GroupScalars scalars_from(
    const Program& program,
    const std::vector<nb::object>& hypers,
    nb::handle learning_rate,
    const mx::array& step);

} // namespace mlx_opt::python
