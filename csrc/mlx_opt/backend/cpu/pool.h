// Threads that stay: a step is too short to start them anew.
#pragma once

#include <cstdint>
#include <functional>

#include "mlx_opt/types/export.h"

namespace mlx_opt::cpu {

/// Calls `task(0)` to `task(count - 1)`, on this thread and on the pool's, and returns when all are
/// done. While one thread's tasks have the pool, those of another run on that other thread alone.
MLX_OPT_API void parallel_for(int64_t count, const std::function<void(int64_t)>& task);

/// Threads that work on a step, the calling one included. The default is MLX_OPT_NUM_THREADS or
/// else the number of cores this process may use.
MLX_OPT_API int num_threads();
MLX_OPT_API void set_num_threads(int threads);

} // namespace mlx_opt::cpu
