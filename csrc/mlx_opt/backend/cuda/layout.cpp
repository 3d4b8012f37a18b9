#include "mlx_opt/backend/cuda/layout.h"

#include <limits>
#include <stdexcept>

#include "mlx_opt/layout.h"

namespace mlx_opt::cuda {
namespace {

bool is_contiguous(const mx::array& x) {
  if (x.flags().row_contiguous) {
    return true;
  }
  const auto dimensions = merged_dimensions(x);
  return dimensions.empty() || (dimensions.size() == 1 && dimensions[0].stride == 1);
}

// Whether dimension `dim` and the last of `layout` lie in memory as one for every operand.
bool merges(const Layout& layout, const mx::array* operands, int count, int dim) {
  const int64_t size = operands->shape()[dim];
  for (int k = 0; k < count; ++k) {
    if (layout.strides[k][layout.dims - 1] != size * operands[k].strides()[dim]) {
      return false;
    }
  }
  return true;
}

} // namespace

bool all_contiguous(const mx::array* operands, int count) {
  for (int k = 0; k < count; ++k) {
    if (!is_contiguous(operands[k])) {
      return false;
    }
  }
  return true;
}

int columns_if_transposed(const mx::array& operand) {
  const auto dimensions = merged_dimensions(operand);
  const bool transposed = dimensions.size() == 2 && dimensions[0].stride == 1 &&
                          dimensions[1].stride == dimensions[0].size &&
                          dimensions[1].size <= std::numeric_limits<int>::max() - tile;
  return transposed ? static_cast<int>(dimensions[1].size) : 0;
}

Layout common_layout(const mx::array* operands, int count) {
  Layout layout{};
  for (int dim = 0; dim < static_cast<int>(operands->ndim()); ++dim) {
    const int64_t size = operands->shape()[dim];
    if (size == 1) {
      continue;
    }
    if (layout.dims > 0 && merges(layout, operands, count, dim)) {
      layout.shape[layout.dims - 1] *= size;
    } else if (layout.dims == max_dims) {
      throw std::runtime_error(
          "mlx_opt: an array of more than " + std::to_string(max_dims) +
          " dimensions that do not merge: make it contiguous with mx.contiguous");
    } else {
      layout.shape[layout.dims++] = size;
    }
    for (int k = 0; k < count; ++k) {
      layout.strides[k][layout.dims - 1] = operands[k].strides()[dim];
    }
  }
  return layout;
}

} // namespace mlx_opt::cuda
