// Ways through memory that several kernels take.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::chunk;
using metal::lanes;
using metal::Layout;
using metal::threads;
using metal::tile;

// Where element `i` lies in each of `count` operands. Index: of the elements.
template <int count, typename Index>
MLX_OPT_FN void locate(constant Layout& layout, Index i, thread long* places) {
  for (int k = 0; k < count; ++k) {
    places[k] = 0;
  }
  for (int dim = layout.dims - 1; dim >= 0; --dim) {
    const Index size = static_cast<Index>(layout.shape[dim]);
    const long position = static_cast<long>(i % size);
    i /= size;
    for (int k = 0; k < count; ++k) {
      places[k] += position * layout.strides[k][dim];
    }
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
