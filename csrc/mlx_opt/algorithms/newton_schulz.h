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

/// An approximation of U V^T for each matrix U S V^T, times its scale.
///
/// `matrices`: of any shapes; float32, float16 or bfloat16. Matrices of the same shape (or its
/// transpose), dtype and scale are processed together, in stacks of up to `stack` elements.
/// `scales`: one for each matrix. `steps`: the number of iterations. `dtype`: of the products; by
/// default bfloat16 for bfloat16 matrices, else float32.
///
/// Returns arrays of the matrices' shapes and dtypes.
MLX_OPT_API std::vector<mx::array> orthogonalized(
    const std::vector<mx::array>& matrices,
    const std::vector<double>& scales,
    const Coefficients& coefficients,
    int steps,
    const std::optional<mx::Dtype>& dtype,
    size_t stack = stack_elements,
    mx::StreamOrDevice s = {});

} // namespace mlx_opt
