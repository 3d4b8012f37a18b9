// The shape of an operand as few dimensions as it can be told in.
#pragma once

#include <cstdint>
#include <vector>

#include "mlx/array.h"

namespace mlx_opt {

struct Dimension {
  int64_t size;
  int64_t stride; // in elements
};

/// The array's dimensions from the outermost, those of size 1 left out and those merged that lie in
/// memory as one.
inline std::vector<Dimension> merged_dimensions(const mlx::core::array& x) {
  std::vector<Dimension> merged;
  for (size_t dim = 0; dim < x.ndim(); ++dim) {
    const int64_t size = x.shape()[dim];
    const int64_t stride = x.strides()[dim];
    if (size == 1) {
      continue;
    }
    if (!merged.empty() && merged.back().stride == size * stride) {
      merged.back() = {merged.back().size * size, stride};
    } else {
      merged.push_back({size, stride});
    }
  }
  return merged;
}

} // namespace mlx_opt
