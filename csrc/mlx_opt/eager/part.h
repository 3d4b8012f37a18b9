// A part of a step: the leaves that one program updates.
#pragma once

#include "mlx_opt/graph/request.h"

namespace mlx_opt {

struct Part {
  Request request;
  Leaves leaves;
};

} // namespace mlx_opt
