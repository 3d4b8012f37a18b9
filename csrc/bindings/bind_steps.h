// The part of mlx_opt._ext about steps: parts, and the functions that run them.
#pragma once

#include <nanobind/nanobind.h>

namespace mlx_opt::python {

void bind_steps(nanobind::module_& m);

} // namespace mlx_opt::python
