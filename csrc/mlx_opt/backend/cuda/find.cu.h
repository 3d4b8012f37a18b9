// Finds the tensor of a block, and the addresses of an element.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The tensor of block `index` of a launch. `first`: the member that holds a tensor's first block.
template <auto first, typename Table>
MLX_OPT_FN const auto& find(const Table& table, unsigned index) {
  int low = 0;
  int high = static_cast<int>(table.count) - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.tensors[middle].*first <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return table.tensors[low];
}

MLX_OPT_FN Index size_of(const cuda::Extent& tensor) {
  return static_cast<Index>(tensor.size);
}

// The offsets of element `index` of a tensor of any layout in each of its operands.
template <int count>
MLX_OPT_FN void locate(const cuda::Layout<count>& layout, Index index, Index (&at)[count]) {
#pragma unroll
  for (int k = 0; k < count; ++k) {
    at[k] = 0;
  }
  for (int dim = layout.dims - 1; dim >= 0; --dim) {
    const Index position = index % layout.shape[dim];
    index /= layout.shape[dim];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      at[k] += position * layout.strides[k][dim];
    }
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
