// Paces a loop of in-place steps: wait for the GPU rarely, but often enough to bound memory.
#pragma once

#include "mlx_opt/eager/accesses.h"
#include "mlx_opt/eager/in_flight.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// Waits until `stream` has few enough steps in flight to take another. The caller may release
/// Python's lock for this; run_in_place then does not wait.
MLX_OPT_API void throttle(mx::Stream stream);

/// Waits for the stream if its last step left a lazy result that the caller did not evaluate: MLX
/// may hold the step's results until then. Returns true if it waited. The caller may release
/// Python's lock.
MLX_OPT_API bool release_lazy_result(mx::Stream stream);

/// True if a large step keeps the GPU busy longer than the host needs to prepare it, and then
/// longer than MLX needs to walk over the results.
bool outlasts_the_host(const Accesses& accesses, mx::Stream stream);

/// Sets the streak of `next`. `idle`: true if it found the GPU idle.
void continue_streak(const InFlightStep* last, InFlightStep& next, bool idle);

/// Lowers the streak if the caller did not wait after all. `parameter`: one of the next step's.
void lower_streak(InFlightStep& last, const mx::array& parameter);

/// True if the caller appears to wait for each step.
bool is_waited_for(const InFlightStep& step);

} // namespace mlx_opt
