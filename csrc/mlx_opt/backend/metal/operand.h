// How operands lie.
#pragma once

#include <algorithm>

#include "mlx/array.h"
#include "mlx_opt/backend/metal/program.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/layout.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// Whether vectors can be loaded from all.
inline bool vectors_fit(const mx::array* operands, int count) {
  return std::all_of(operands, operands + count, [](const mx::array& x) {
    return x.offset() % static_cast<int64_t>(lanes * x.itemsize()) == 0;
  });
}

} // namespace mlx_opt::metal
