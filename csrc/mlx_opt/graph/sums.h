// The sums over all tensors that some rules need before their step.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// For each group of a request whose rule sums over all tensors, its sums over these leaves: a
/// float32 for each of the rule's. They are evaluated if the device is the CPU and the operands are
/// evaluated and few, else lazy. The numbers that the rule keeps are as before the step. On a GPU,
/// and if it is asked for, MLX's own operations compute them.
///
/// Throws what `check` throws.
MLX_OPT_API std::vector<std::vector<mx::array>> sums_of(
    const Request& request, const Leaves& leaves, bool by_operations = false);

} // namespace mlx_opt
