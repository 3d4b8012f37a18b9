// Adafactor's tiles. A block of 8 warps processes one tile; each warp takes every eighth line.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using cuda::AdafactorStrided;
using cuda::AdafactorTable;
using cuda::AdafactorTensor;
using cuda::threads;

constexpr int warps = threads / warp;

template <typename Table>
MLX_OPT_FN const Uniforms<Adafactor>& uniforms_of(
    const Table& table, const AdafactorTensor& tensor) {
  return uniforms_of<Adafactor>(table.group_uniforms, tensor.group);
}

// All groups have the same scale.
template <typename Table>
MLX_OPT_FN bool is_applied(const Table& table) {
  return !table.skip_nonfinite || is_finite(uniforms_of<Adafactor>(table.group_uniforms, 0).scale);
}

// Indices of the operands with one value for each element, in the order of AdafactorStrided's
// strides.
enum : int { parameter, mean, first_moment, gradient };

constexpr int in_tensor[] = {0, 1, 3, 4};

template <int operand, int capacity>
MLX_OPT_FN Index place_of(const AdafactorTable<capacity>&, Index i) {
  return i;
}

template <int operand>
MLX_OPT_FN Index place_of(const AdafactorStrided& args, Index i) {
  Index at[4];
  locate(args.elements, i, at);
  return at[operand];
}

// The elements [begin, begin + count) of a line, of which each of `across` threads has some:
// adjacent ones if vectors are loaded.
template <int vector_width, int across>
struct Line {
  Index begin;
  int count;
  bool vectors;

  // Where in the line element `lane` of this thread is.
  MLX_OPT_FN int column_of(int lane, bool vectors) {
    const int own = threadIdx.x % across;
    return vectors ? own * vector_width + lane : own + lane * across;
  }

  // Loads this thread's elements; 0 past the end. `place(i)`: where element i of the tensor is.
  template <typename Format, typename Place>
  __device__ __forceinline__ void load(
      const void* from, const Place& place, Raw<Format, vector_width>& to) const {
    if constexpr (vector_width > 1) {
      if (vectors) {
        if (column_of(0, true) < count) {
          to.load(from, begin + column_of(0, true));
        }
        return;
      }
    }
#pragma unroll
    for (int lane = 0; lane < vector_width; ++lane) {
      if (column_of(lane, false) < count) {
        to.load_lane(lane, from, place(begin + column_of(lane, false)));
      }
    }
  }

  template <typename Format>
  __device__ __forceinline__ void load(const void* from, Raw<Format, vector_width>& to) const {
    load<Format>(from, [](Index i) { return i; }, to);
  }

  template <typename Format>
  __device__ __forceinline__ void store(void* to, const float (&from)[vector_width]) const {
    if (vector_width > 1 && vectors) {
      if (column_of(0, true) < count) {
        mlx_opt::MLX_OPT_LEVEL::store<Format>(to, begin + column_of(0, true), from);
      }
      return;
    }
#pragma unroll
    for (int lane = 0; lane < vector_width; ++lane) {
      const float x[1] = {from[lane]};
      if (column_of(lane, false) < count) {
        mlx_opt::MLX_OPT_LEVEL::store<Format>(to, begin + column_of(lane, false), x);
      }
    }
  }
};

// A tile of a tensor's matrices in the orientation of its gradient in memory, or of the rows into
// which a tensor that is not factored is divided.
template <int vector_width>
struct Tile {
  static constexpr int width = warp * vector_width;

  const AdafactorTensor& tensor;
  unsigned index;        // of the tile in the tensor
  unsigned matrix;       // index of its matrix
  unsigned down, across; // its position in the matrix
  unsigned tiles_down;   // of a matrix
  Index lines, columns;  // of a matrix
  Index top;             // its first line, counted through all matrices
  Index left;            // its first column
  int height;

  MLX_OPT_FN Tile of(const AdafactorTensor& t, unsigned index) {
    const Index lines = t.transposed ? t.columns : t.rows;
    const Index columns = t.transposed ? t.rows : t.columns;
    const auto tiles_down =
        static_cast<unsigned>((lines + cuda::adafactor_rows - 1) / cuda::adafactor_rows);
    const auto tiles_across = static_cast<unsigned>((columns + width - 1) / width);
    const unsigned row_of_tiles = index / tiles_across;
    const unsigned matrix = row_of_tiles / tiles_down;
    const unsigned down = row_of_tiles % tiles_down;
    const unsigned across = index % tiles_across;
    const Index first = static_cast<Index>(down) * cuda::adafactor_rows;
    const Index remaining = lines - first;
    return {
        t,
        index,
        matrix,
        down,
        across,
        tiles_down,
        lines,
        columns,
        matrix * lines + first,
        static_cast<Index>(across) * width,
        remaining < cuda::adafactor_rows ? static_cast<int>(remaining) : cuda::adafactor_rows};
  }

  // The first element of the tile's line `line`, and the number of elements that the line has in
  // the tile.
  __device__ __forceinline__ Index begin_of(int line) const {
    return (top + line) * columns + left;
  }

  __device__ __forceinline__ int width_of(int line) const {
    const Index in_line = columns - left;
    const Index in_tensor = tensor.size - begin_of(line);
    const Index count = in_line < in_tensor ? in_line : in_tensor;
    return count < width ? static_cast<int>(count) : width;
  }

  // The tile's column that element `lane` of this thread is in.
  MLX_OPT_FN int column_of(int lane, bool vectors) {
    return Line<vector_width, warp>::column_of(lane, vectors);
  }

  __device__ __forceinline__ Line<vector_width, warp> part_of(int line, bool vectors) const {
    return {begin_of(line), line < height ? width_of(line) : 0, vectors};
  }

  // Loads this thread's part of a line; 0 past its end.
  template <int operand, typename Format, typename Table>
  __device__ __forceinline__ void load_line(
      const Table& table, int line, bool vectors, Raw<Format, vector_width>& to) const {
    const auto place = [&](Index i) { return place_of<operand>(table, i); };
    part_of(line, vectors).template load<Format>(tensor.in[in_tensor[operand]], place, to);
  }

  template <typename Format>
  __device__ __forceinline__ void store_line(
      void* to, int line, bool vectors, const float (&from)[vector_width]) const {
    part_of(line, vectors).template store<Format>(to, from);
  }

  // True if every line consists of whole vectors of operands of these formats.
  template <typename... Formats, typename... Operands>
  __device__ __forceinline__ bool allows_vectors(const Operands*... operands) const {
    const void* const all[] = {operands...};
    return vector_width > 1 && columns % vector_width == 0 && tensor.size % vector_width == 0 &&
           List<Formats...>::template aligned<vector_width>(all);
  }
};

// The mean of the new means of a matrix's rows. All lanes return it.
MLX_OPT_FN float mean_row(const AdafactorTensor& t, unsigned matrix) {
  // As many as AdafactorMeans has for the rows of a matrix.
  const Index blocks =
      (t.rows * t.row_split + cuda::adafactor_threads - 1) / cuda::adafactor_threads;
  const double* totals = t.scratch.totals + matrix * blocks;
  double sum = 0.0;
  for (Index i = threadIdx.x % warp; i < blocks; i += warp) {
    sum += totals[i];
  }
  return static_cast<float>(sum_over_warp(sum) / t.rows);
}

// The factors of a thread's columns and of its warp's lines: lane k holds that of the warp's line
// number k.
template <int vector_width>
struct Factors {
  float of_columns[vector_width];
  float of_lines;
  static_assert(cuda::adafactor_rows / warps <= warp, "a lane for each line of a warp");

  MLX_OPT_FN Factors of(const Tile<vector_width>& tile, bool vectors) {
    const AdafactorTensor& t = tile.tensor;
    const float* rows = t.scratch.row_means + tile.matrix * t.rows;
    const float* columns = t.scratch.column_factors + tile.matrix * t.columns;
    Factors factors;
#pragma unroll
    for (int lane = 0; lane < vector_width; ++lane) {
      const Index column = tile.left + tile.column_of(lane, vectors);
      factors.of_columns[lane] =
          column < tile.columns ? (t.transposed ? rows : columns)[column] : 1.0f;
    }
    const int line = threadIdx.x / warp + warps * (threadIdx.x % warp);
    const Index place = static_cast<Index>(tile.down) * cuda::adafactor_rows + line;
    factors.of_lines = line < tile.height ? (t.transposed ? columns : rows)[place] : 1.0f;
    // Last: the mean waits for what it loads.
    const float mean = mean_row(t, tile.matrix);
    if (!t.transposed) {
      factors.of_lines = Adafactor::row_factor(factors.of_lines, mean);
      return factors;
    }
#pragma unroll
    for (int lane = 0; lane < vector_width; ++lane) {
      factors.of_columns[lane] = Adafactor::row_factor(factors.of_columns[lane], mean);
    }
    return factors;
  }

  __device__ __forceinline__ float of_line(int line) const {
    return __shfl_sync(0xffffffffu, of_lines, line / warps);
  }
};

// Updates the running means of a part of a line and computes their factors.
template <int vector_width>
MLX_OPT_FN void average_line(
    float (&v)[vector_width],
    const float (&g)[vector_width],
    const Uniforms<Adafactor>& uniforms,
    float (&factors)[vector_width]) {
#pragma unroll
  for (int lane = 0; lane < vector_width; ++lane) {
    const float x = taken(uniforms.scale, g[lane]);
    v[lane] = Adafactor::average(v[lane], x * x, uniforms.hypers, uniforms.scalars);
    factors[lane] = Adafactor::factor(v[lane]);
  }
}

// Common code of the passes over tiles. A warp loads `lines` lines at once, so that enough memory
// reads are in flight.
template <int vector_width, int lines = vector_width == 1 ? 1 : 4>
struct Pass {
  static constexpr int at_once = lines;
  static constexpr int strip = at_once * warps;

  template <typename Table>
  MLX_OPT_FN Tile<vector_width> tile_of(const Table& table) {
    const AdafactorTensor& tensor = find<&AdafactorTensor::first_tile>(table, blockIdx.x);
    return Tile<vector_width>::of(tensor, blockIdx.x - tensor.first_tile);
  }

  MLX_OPT_FN void put_squares(const Tile<vector_width>& tile, unsigned behind, double sum) {
    const double total = sum_over_block<threads>(sum);
    if (threadIdx.x == 0) {
      tile.tensor.scratch.squares[behind + tile.index] = total;
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
