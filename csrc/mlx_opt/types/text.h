// Shapes and dtypes as Python writes them.
#pragma once

#include <string>

#include "mlx/array.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// Examples: (4, 8), (3,), (). MLX's operator<< for shapes is not used, because in MLX's CUDA build
/// it crashes when it is called from here.
MLX_OPT_API std::string shape_text(const mlx::core::Shape& shape);

/// For example "float32".
const char* dtype_text(mlx::core::Dtype dtype);

} // namespace mlx_opt
