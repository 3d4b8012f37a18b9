// The part of mlx_opt._ext about rules: their programs.
#pragma once

#include <nanobind/nanobind.h>

namespace mlx_opt::python {

void bind_rules(nanobind::module_& m);

} // namespace mlx_opt::python
