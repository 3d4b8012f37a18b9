// How operands lie.
#pragma once

#include <algorithm>

#include "mlx/array.h"
#include "mlx_opt/backend/metal/program.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// Whether vectors can be loaded from it; from all.
inline bool vectors_fit(const mx::array& x) {
  return x.offset() % static_cast<int64_t>(lanes * x.itemsize()) == 0;
}

inline bool vectors_fit(const mx::array* const* operands, int count) {
  return std::all_of(operands, operands + count, [](auto* x) { return vectors_fit(*x); });
}

} // namespace mlx_opt::metal
