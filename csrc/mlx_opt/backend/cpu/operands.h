// Makes the kernels' operands from arrays.
#pragma once

#include <memory>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cpu {

namespace mx = mlx::core;

/// Makes operands and owns their layouts. MLX keeps the buffers until the task is done.
class Operands {
 public:
  /// The array's elements in row-major order.
  Operand of(const mx::array& x);

  /// The array's elements in memory order if they have no gaps, else as `of`.
  Operand in_any_order(const mx::array& x);

 private:
  struct Owned;
  std::vector<std::shared_ptr<Owned>> layouts_;
};

} // namespace mlx_opt::cpu
