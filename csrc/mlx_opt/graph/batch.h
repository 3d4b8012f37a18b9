// The elements of a batch that is mapped over.
#pragma once

#include "mlx/ops.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// Element `index` of a batch along `axis`, which may be empty.
inline mx::array element_of(const mx::array& batch, int index, int axis, mx::Stream stream) {
  mx::Shape start(batch.ndim(), 0), stop = batch.shape();
  start[axis] = index;
  stop[axis] = index + 1;
  return mx::squeeze(mx::slice(batch, start, stop, stream), axis, stream);
}

} // namespace mlx_opt
