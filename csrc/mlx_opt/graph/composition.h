// A step of several stages around its program's rule, built from primitives and MLX's own
// operations.
#pragma once

#include <vector>

#include "mlx_opt/graph/request.h"

namespace mlx_opt {

class Composition {
 public:
  virtual ~Composition() = default;

  /// The new parameters and slots after a step, in the order of the leaves.
  virtual std::vector<mx::array> successors(const Request& request, const Leaves& leaves) const = 0;
};

} // namespace mlx_opt
