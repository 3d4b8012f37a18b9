// A step that runs at once and overwrites its operands. Building a graph and walking it takes
// longer than a small model's step; where no other reference can observe the difference, the graph
// is skipped.
#pragma once

#include <vector>

#include "mlx_opt/eager/part.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// Queues one step of all parts, which overwrites their parameters and slots, and evaluates
/// `counters` with it: the numbers of the steps first.
///
/// It does so if all operands are evaluated, on a GPU at least queued on the stream, and each
/// parameter and slot is row-contiguous, keeps its dtype, and is held by its pointer alone: the
/// array by no copy, its buffer by no other array, nor by a queued task but the stream's last step.
/// Otherwise it changes nothing and returns false.
///
/// On the CPU a small step runs on the calling thread, before this returns.
///
/// For all parts, kernels are loaded, memory is allocated and tables are filled before the first is
/// queued. An exception has changed nothing.
///
/// Where the caller seems to wait for each step, the first counter may be left as an equal array
/// that is still to be evaluated: MLX then waits once for all results, and not for each.
MLX_OPT_API bool run_in_place(
    std::vector<Part> parts, const std::vector<mx::array*>& counters, mx::Stream stream);

} // namespace mlx_opt
