// What Newton-Schulz iterations are made of: coefficients, and stacks of matrices.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// (a, b, c) for each Newton-Schulz iteration; further iterations repeat the last. x becomes a x +
/// b x x^T x + c (x x^T)^2 x.
using Coefficients = std::vector<std::array<double, 3>>;

/// Jordan et al., 2024: steep at 0; brings singular values between 0.7 and 1.2.
MLX_OPT_API const Coefficients& quintic();

/// Amsel et al., arXiv:2505.16932: each triple is optimal among polynomials of degree 5 for the
/// range into which the previous one maps singular values from 0.001 to 1.
MLX_OPT_API const Coefficients& polar_express();

/// Default number of elements of a stack of matrices; temporaries take a few times its memory.
inline constexpr size_t stack_elements = size_t{1} << 24;

} // namespace mlx_opt
