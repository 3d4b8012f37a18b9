// The orthogonal factors of many matrices at once, by Newton-Schulz iterations.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// Elements of a stack of matrices: what is made on the way takes a few times its memory.
inline constexpr size_t stack_elements = size_t{1} << 24;

/// U V^T of each matrix U S V^T, roughly, times its scale.
///
/// `matrices`: of any shapes, float32, float16 or bfloat16. Those of one shape, or of one shape
/// transposed, of one dtype and of one scale go through together, in stacks of up to `stack`
/// elements. `scales`: one a matrix. `steps`: the iterations. `dtype`: of the products; bfloat16
/// where the matrix is that, else float32, if left out.
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
