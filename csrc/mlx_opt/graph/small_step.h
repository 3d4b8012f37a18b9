// Work on the CPU that takes less time than waking the stream's thread.
#pragma once

#include <cstddef>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// On the CPU, a step over at most this many elements runs on the calling thread.
inline constexpr size_t default_small_step = 8192;

/// The current limit of such a step's elements; 0 if every step is queued. Tests change it.
MLX_OPT_API size_t small_step();
MLX_OPT_API void set_small_step(size_t elements);

/// True if `arrays` are evaluated and so small that the calling thread computes with them itself.
bool are_small(const std::vector<mx::array>& arrays, mx::Stream stream);

} // namespace mlx_opt
