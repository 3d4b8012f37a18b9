// A patch of a matrix whose columns are contiguous: read down the columns, used along the rows.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The elements of a patch as floats, in shared memory. Each row is stored in groups of four columns
// and in an order of its own, so that neither vectors down the columns nor groups along the rows
// compete for the memory's banks. `step`: rows of a vector down the columns.
template <int height, int width, int step>
struct Patch {
  static constexpr int groups = width / 4;
  static_assert((groups & (groups - 1)) == 0 && height / step <= groups, "an order for each step");

  struct alignas(16) Group {
    float x[4];
  };

  Group rows[height][groups];

  __device__ __forceinline__ Group& group(int row, int column) {
    return rows[row][column / 4 ^ row / step];
  }

  __device__ __forceinline__ float& at(int row, int column) {
    return group(row, column).x[column % 4];
  }

  // The elements from `column` on, a multiple of 4 unless `count` is 1.
  template <int count>
  __device__ __forceinline__ void get(int row, int column, float (&to)[count]) {
    if constexpr (count == 1) {
      to[0] = at(row, column);
    } else {
#pragma unroll
      for (int k = 0; k < count; k += 4) {
        const Group four = group(row, column + k);
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
          to[k + lane] = four.x[lane];
        }
      }
    }
  }
};

// What a thread loads of a patch: vectors down its columns, all of them before the first is used.
template <typename Format, int vector_width, int height, int width>
struct PatchLoads {
  using Memory = Patch<height, width, vector_width>;
  static constexpr int steps = height / vector_width;
  static constexpr int count = steps * width / cuda::threads;

  Raw<Format, vector_width> stored[count];

  MLX_OPT_FN int row_of(int k) {
    return (threadIdx.x + k * cuda::threads) % steps * vector_width;
  }

  MLX_OPT_FN int column_of(int k) {
    return (threadIdx.x + k * cuda::threads) / steps;
  }

  // Loads what is inside `rows` and `columns`. `begin`: the patch's first element; `stride`:
  // between columns. `vectors`: true if each column has whole vectors.
  __device__ __forceinline__ void load(
      const void* operand, Index begin, Index stride, int rows, int columns, bool vectors) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const Index first = begin + column_of(k) * stride + row_of(k);
      const int remaining = column_of(k) < columns ? rows - row_of(k) : 0;
      if (vectors) {
        if (remaining > 0) {
          stored[k].load(operand, first);
        }
        continue;
      }
#pragma unroll
      for (int lane = 0; lane < vector_width; ++lane) {
        if (lane < remaining) {
          stored[k].load_lane(lane, operand, first + lane);
        }
      }
    }
  }

  __device__ __forceinline__ void put(Memory& patch) const {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      float values[vector_width];
      stored[k].widen(values);
#pragma unroll
      for (int lane = 0; lane < vector_width; ++lane) {
        patch.at(row_of(k) + lane, column_of(k)) = values[lane];
      }
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
