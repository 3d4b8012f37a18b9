// How a loop of in-place steps waits: for the GPU as rarely as possible, but often enough not to
// fill the memory.
#pragma once

#include "mlx_opt/eager/accesses.h"
#include "mlx_opt/eager/in_flight.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// Waits until `stream` takes another step without having too many in flight. May be called without
/// Python's lock; run_in_place then does not wait.
MLX_OPT_API void throttle(mx::Stream stream);

/// Waits for the stream if its last step left an array to be evaluated and the caller has gone on
/// without waiting: MLX may hold the step's results until then. Returns true if it waited. May be
/// called without Python's lock.
MLX_OPT_API bool release_lazy_result(mx::Stream stream);

/// On the CPU, a step over so few elements takes less time than waking the stream's thread: it runs
/// on the calling thread.
inline constexpr size_t default_small_step = 8192;

/// The most elements of such a step; 0 if every step is queued. For tests.
MLX_OPT_API size_t small_step();
MLX_OPT_API void set_small_step(size_t elements);

/// True if a GPU is busy for longer than the host: while the host prepares a large step, and after
/// that while MLX walks over the results.
bool outlasts_the_host(const Accesses& accesses, mx::Stream stream);

/// Counts a step of which `idle` says if it found the GPU idle.
void continue_streak(const InFlightStep* last, InFlightStep& next, bool idle);

/// Lowers the streak of a caller who does not wait after all. `parameter`: of the next step.
void lower_streak(InFlightStep& last, const mx::array& parameter);

/// True if the caller seems to wait for each step.
bool is_waited_for(const InFlightStep& step);

} // namespace mlx_opt
