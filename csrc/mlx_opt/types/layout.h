// The memory layouts of operands.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt {

/// Pointers to arrays that others own.
using ArrayRefs = std::vector<const mlx::core::array*>;

inline ArrayRefs refs_to(const std::vector<mlx::core::array>& arrays) {
  ArrayRefs pointers;
  pointers.reserve(arrays.size());
  for (const auto& x : arrays) {
    pointers.push_back(&x);
  }
  return pointers;
}

/// True if the rules' kernels read and write this storage: float32, float16 and bfloat16.
inline bool is_storage(mlx::core::Dtype dtype) {
  return dtype == mlx::core::float32 || dtype == mlx::core::float16 || dtype == mlx::core::bfloat16;
}

/// The storage of a dtype for which `is_storage` is true, or of uint16, int8 or uint8.
inline Storage storage_of(mlx::core::Dtype dtype) {
  return dtype == mlx::core::float32   ? Storage::float32
         : dtype == mlx::core::float16 ? Storage::float16
         : dtype == mlx::core::uint16  ? Storage::bits16
         : dtype == mlx::core::int8    ? Storage::int8
         : dtype == mlx::core::uint8   ? Storage::uint8
                                       : Storage::bfloat16;
}

struct Dimension {
  int64_t size;
  int64_t stride; // in elements
};

/// The array's dimensions from the outermost, without those of size 1, and with adjacent dimensions
/// merged if they are contiguous.
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

inline bool is_contiguous(const mlx::core::array& x) {
  if (x.flags().row_contiguous) {
    return true;
  }
  const auto dimensions = merged_dimensions(x);
  return dimensions.empty() || (dimensions.size() == 1 && dimensions[0].stride == 1);
}

inline bool all_contiguous(const mlx::core::array* const* operands, int count) {
  for (int k = 0; k < count; ++k) {
    if (!is_contiguous(*operands[k])) {
      return false;
    }
  }
  return true;
}

/// The number of columns if the operand is a dense matrix with contiguous columns, else 0. The
/// number plus `tile` fits into an int.
inline int columns_if_transposed(const mlx::core::array& operand, int tile) {
  const auto dimensions = merged_dimensions(operand);
  const bool transposed = dimensions.size() == 2 && dimensions[0].stride == 1 &&
                          dimensions[1].stride == dimensions[0].size &&
                          dimensions[1].size <= std::numeric_limits<int>::max() - tile;
  return transposed ? static_cast<int>(dimensions[1].size) : 0;
}

/// True if the matrices of the last two dimensions are dense, transposed and stored end to end.
inline bool has_transposed_matrices(const mlx::core::array& x) {
  const auto& shape = x.shape();
  const auto& strides = x.strides();
  const auto dims = static_cast<int>(shape.size());
  int64_t expected = 1;
  const auto fits = [&](int dim) {
    const bool right = shape[dim] == 1 || strides[dim] == expected;
    expected *= shape[dim];
    return right;
  };
  if (!fits(dims - 2) || !fits(dims - 1)) {
    return false;
  }
  for (int dim = dims - 3; dim >= 0; --dim) {
    if (!fits(dim)) {
      return false;
    }
  }
  return true;
}

/// The shape and every operand's strides, with dimensions merged where that is possible for all
/// operands, in a backend's Layout: `dims`, `shape[dim]`, `strides[operand][dim]`. Throws
/// std::runtime_error if Layout has fewer dimensions than that needs.
template <typename Layout>
Layout common_layout(const mlx::core::array* const* operands, int count) {
  const mlx::core::array& first = *operands[0];
  Layout layout{};
  constexpr int max_dims = sizeof(layout.shape) / sizeof(layout.shape[0]);
  const auto merges = [&](int dim) {
    for (int k = 0; k < count; ++k) {
      const int64_t together = first.shape()[dim] * operands[k]->strides()[dim];
      if (layout.strides[k][layout.dims - 1] != together) {
        return false;
      }
    }
    return true;
  };
  for (int dim = 0; dim < static_cast<int>(first.ndim()); ++dim) {
    const int64_t size = first.shape()[dim];
    if (size == 1) {
      continue;
    }
    if (layout.dims > 0 && merges(dim)) {
      layout.shape[layout.dims - 1] *= size;
    } else if (layout.dims == max_dims) {
      throw std::runtime_error(
          "mlx_opt: an array of more than " + std::to_string(max_dims) +
          " dimensions that do not merge: make it contiguous with mx.contiguous");
    } else {
      layout.shape[layout.dims++] = size;
    }
    for (int k = 0; k < count; ++k) {
      layout.strides[k][layout.dims - 1] = operands[k]->strides()[dim];
    }
  }
  return layout;
}

template <typename Layout>
Layout layout_of(const mlx::core::array& x) {
  const auto* operand = &x;
  return common_layout<Layout>(&operand, 1);
}

} // namespace mlx_opt
