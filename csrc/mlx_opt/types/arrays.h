// The types of a step's arguments and results: arrays, and scalars that may be arrays.
#pragma once

#include <variant>
#include <vector>

#include "mlx/array.h"

namespace mlx_opt {

namespace mx = mlx::core;

using Arrays = std::vector<mx::array>;

/// True if `x` is not traced and the calling thread may read it without waiting.
inline bool is_evaluated(const mx::array& x) {
  return x.status() != mx::array::Status::unscheduled && !x.is_tracer() && x.is_available();
}

/// A hyperparameter: a constant, or a 0-d array that is read when the step runs.
using Scalar = std::variant<double, mx::array>;

} // namespace mlx_opt
