// Shapes and dtypes in messages.
#pragma once

#include <string>

#include "mlx/array.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// A shape as Python writes it: (4, 8), (3,), (). By hand, because MLX's operator<< for shapes
/// crashes in its CUDA build when called from here.
MLX_OPT_API std::string shape_text(const mx::Shape& shape);

/// As MLX writes it: float32.
const char* dtype_text(mx::Dtype dtype);

} // namespace mlx_opt
