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
  Operand of(const mx::array& x) {
    return operand(x, x.flags().row_contiguous ? nullptr : layout_of(x));
  }

  /// The array's elements in memory order if they have no gaps, else as `of`.
  Operand in_any_order(const mx::array& x) {
    return x.flags().contiguous && x.data_size() == x.size() ? operand(x, nullptr) : of(x);
  }

 private:
  struct Owned;

  static Operand operand(const mx::array& x, const Layout* layout) {
    void* data = const_cast<void*>(static_cast<const void*>(x.data<char>()));
    return {data, storage_of(x.dtype()), layout};
  }

  const Layout* layout_of(const mx::array& x);

  std::vector<std::shared_ptr<Owned>> layouts_;
};

} // namespace mlx_opt::cpu
