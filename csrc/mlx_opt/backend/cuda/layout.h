// Which way through memory a tensor's operands take.
#pragma once

#include "mlx/array.h"
#include "mlx_opt/backend/cuda/tables.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

bool all_contiguous(const mx::array* operands, int count);

/// The columns of an operand that is a dense matrix with contiguous columns, else 0.
int columns_if_transposed(const mx::array& operand);

/// The shape and every operand's strides, in as few dimensions as serve them all. Throws
/// std::runtime_error if those are more than max_dims.
Layout common_layout(const mx::array* operands, int count);

} // namespace mlx_opt::cuda
