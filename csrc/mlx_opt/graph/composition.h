// A step of several stages around its program's rule, of primitives and of MLX's own operations.
#pragma once

#include <vector>

#include "mlx_opt/graph/request.h"

namespace mlx_opt {

class Composition {
 public:
  virtual ~Composition() = default;

  /// The successors of a step over `operands`: for each tensor its parameter, slots and gradient.
  virtual std::vector<mx::array> successors(
      const Request& request, std::vector<mx::array> operands) const = 0;
};

} // namespace mlx_opt
