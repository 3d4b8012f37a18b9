// Walks over memory that several kernels use.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::chunk;
using metal::Layout;
using metal::threads;
using metal::tile;
using metal::vector_width;

MLX_OPT_FN uint at_most(ulong x, uint limit) {
  return x < limit ? static_cast<uint>(x) : limit;
}

// The offsets of element `i` in each operand. Index: the type of element indices.
template <int count, typename Index>
MLX_OPT_FN void locate(constant Layout<count>& layout, Index i, thread long* places) {
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

// For contiguous elements: calls `each.elements<count>(i)` for this thread's elements of the
// threadgroup, from `begin` on.
template <typename Each>
MLX_OPT_FN void over_chunk(thread Each& each, ulong begin, ulong size, bool vectors, uint index) {
  const uint count = at_most(size - begin, chunk);
  const uint done = vectors ? count / vector_width * vector_width : 0u;
  for (uint i = index * vector_width; i < done; i += threads * vector_width) {
    each.template elements<vector_width>(begin + i);
  }
  for (uint i = done + index; i < count; i += threads) {
    each.template elements<1>(begin + i);
  }
}

MLX_OPT_FN void wait_for_group() {
  ::metal::threadgroup_barrier(::metal::mem_flags::mem_threadgroup);
}

// A tile of a matrix.
struct Tile {
  ulong top;
  uint left, height, width;

  // The tile of a threadgroup.
  MLX_OPT_FN Tile of(ulong rows, uint columns, uint group) {
    const uint across = (columns + tile - 1) / tile;
    Tile t;
    t.top = static_cast<ulong>(group / across) * tile;
    t.left = group % across * tile;
    t.height = at_most(rows - t.top, tile);
    t.width = at_most(columns - t.left, tile);
    return t;
  }
};

// One more than a tile's width, so that threads of a column use different banks.
enum : uint { pitch = tile + 1 };

// Reads a tile of a matrix with contiguous columns down its columns into `staged`.
template <typename Format, int count>
MLX_OPT_FN void stage(
    device const uchar* matrix, ulong rows, Tile t, uint index, threadgroup float* staged) {
  const uint steps = tile / count;
  for (uint i = index; i < tile * steps; i += threads) {
    const uint row = i % steps * count;
    const uint column = i / steps;
    if (row < t.height && column < t.width) {
      float values[count];
      Access<Format, count>::load(matrix, (t.left + column) * rows + t.top + row, values);
      for (int lane = 0; lane < count; ++lane) {
        staged[(row + lane) * pitch + column] = values[lane];
      }
    }
  }
}

// Walks over a tile along its rows: calls `each.elements<count>(row, column, g)` for this thread's
// elements of the tile, where `g` are their staged values.
template <int count, typename Each>
MLX_OPT_FN void over_tile(thread Each& each, Tile t, uint index, threadgroup const float* staged) {
  const uint steps = tile / count;
  for (uint i = index; i < tile * steps; i += threads) {
    const uint row = i / steps;
    const uint column = i % steps * count;
    if (row < t.height && column < t.width) {
      each.template elements<count>(t.top + row, t.left + column, staged + row * pitch + column);
    }
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
