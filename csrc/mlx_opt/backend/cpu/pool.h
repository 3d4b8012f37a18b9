// A persistent thread pool: a step is too short to start threads for it.
#pragma once

#include <cstdint>
#include <functional>

#include "mlx_opt/types/export.h"

namespace mlx_opt::cpu {

/// Calls `task(0)` to `task(count - 1)` on this thread and the pool's, and returns when all are
/// done. While the pool serves one caller, the tasks of another run on its own thread.
MLX_OPT_API void parallel_for(int64_t count, const std::function<void(int64_t)>& task);

/// Number of threads that work on a step, including the calling one. The default is
/// MLX_OPT_NUM_THREADS or else the number of cores that this process may use.
MLX_OPT_API int num_threads();
MLX_OPT_API void set_num_threads(int threads);

} // namespace mlx_opt::cpu
