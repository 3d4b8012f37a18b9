// The steps of mlx_opt._ext: parts and what runs them.
#pragma once

#include <nanobind/nanobind.h>

namespace mlx_opt::python {

void bind_steps(nanobind::module_& m);

} // namespace mlx_opt::python
