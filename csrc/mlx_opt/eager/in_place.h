// A step that runs eagerly and overwrites its operands. For a small model, building and walking a
// graph takes longer than the step itself; if no other reference can observe the difference, we
// skip the graph.
#pragma once

#include <vector>

#include "mlx_opt/eager/part.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// Queues one step of all parts, which overwrites their parameters and slots. Evaluates `counters`
/// with it: the step's number first.
///
/// Requires that all operands are evaluated, or on a GPU queued on the same stream, and that each
/// parameter and slot is row-contiguous, keeps its dtype and has no other holder: no copy of the
/// array, no other array with its buffer, and no queued task except the stream's last step.
/// Otherwise returns false and changes nothing.
///
/// On the CPU a small step runs on the calling thread before this returns.
///
/// Loads the kernels, allocates memory and fills the tables of all parts before it queues the
/// first. An exception changes nothing.
///
/// If the caller appears to wait for each step, the first counter may be replaced by an equal lazy
/// array, so that MLX waits once and not once for each result.
MLX_OPT_API bool run_in_place(
    std::vector<Part> parts, const std::vector<mx::array*>& counters, mx::Stream stream);

} // namespace mlx_opt
