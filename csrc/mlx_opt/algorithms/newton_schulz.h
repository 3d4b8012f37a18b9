// The orthogonal factors of many matrices at once, by Newton-Schulz iterations.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/coefficients.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// What is done with matrices besides the iterations, stack by stack.
class Stages {
 public:
  virtual ~Stages() = default;

  /// Matrices of different kinds are in different stacks.
  virtual size_t kind_of(size_t matrix) const = 0;

  /// The stack that the iterations take. `stack`: matrices, rows, columns; float32.
  virtual mx::array before(const mx::array& stack) = 0;

  /// The results, from a stack of orthogonal factors. `members`: the numbers of its matrices.
  virtual mx::array after(const mx::array& stack, const std::vector<size_t>& members) = 0;
};

/// An approximation of U V^T for each matrix U S V^T, times its scale.
///
/// `matrices`: of any shapes; float32, float16 or bfloat16. Matrices of the same shape (or its
/// transpose), dtype and scale are processed together, in stacks of up to `stack` elements.
/// `scales`: one for each matrix. `steps`: the number of iterations. `dtype`: of the products; by
/// default bfloat16 for bfloat16 matrices, else float32. `stages`: none if null.
///
/// Returns arrays of the matrices' shapes and dtypes.
MLX_OPT_API std::vector<mx::array> orthogonalized(
    const std::vector<mx::array>& matrices,
    const std::vector<double>& scales,
    const Coefficients& coefficients,
    int steps,
    const std::optional<mx::Dtype>& dtype,
    size_t stack = stack_elements,
    mx::StreamOrDevice s = {},
    Stages* stages = nullptr);

} // namespace mlx_opt
