// Allocates device memory for outputs that get no donated buffer.
#pragma once

#include "mlx/array.h"
#include "mlx/stream.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

/// A buffer from MLX's pool of device memory. MLX's own `allocator::malloc` returns managed memory,
/// whose first use by the GPU costs page faults.
Data device_memory(size_t bytes, mx::Stream stream);

} // namespace mlx_opt::cuda
