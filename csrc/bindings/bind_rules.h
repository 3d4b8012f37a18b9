// The rules of mlx_opt._ext: what they say about themselves, and programs.
#pragma once

#include <nanobind/nanobind.h>

namespace mlx_opt::python {

void bind_rules(nanobind::module_& m);

} // namespace mlx_opt::python
