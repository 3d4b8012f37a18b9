// Adafactor's passes that add up: the squares of gradient and parameter, and those of the update.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// W, G: the formats of the parameter and of the gradient.
template <typename W, typename G, int lanes>
struct FactorSquares : Pass<lanes> {
  using Pass<lanes>::at_once;

  template <typename Table>
  MLX_OPT_FN void run(const Table& table) {
    if (!is_taken(table)) {
      return;
    }
    const auto tile = Pass<lanes>::tile_of(table);
    const FactorTensor& t = tile.tensor;
    const float scale = frame_of(table).scale;
    const bool vectors = tile.template allows_vectors<W, G>(t.in[0], t.in[4]);
    float columns[lanes] = {};
    float total = 0.0f;
    for (int strip = threadIdx.x / warp; strip < tile.height; strip += Pass<lanes>::strip) {
      float w[at_once][lanes];
      float g[at_once][lanes];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        tile.template load_line<W, parameter>(table, strip + k * warps, vectors, w[k]);
        tile.template load_line<G, gradient>(table, strip + k * warps, vectors, g[k]);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        float line = 0.0f;
#pragma unroll
        for (int lane = 0; lane < lanes; ++lane) {
          const float x = scale * g[k][lane];
          total = fma(w[k][lane], w[k][lane], total);
          line = fma(x, x, line);
          columns[lane] = fma(x, x, columns[lane]);
        }
        if (t.factored) {
          put_line(tile, strip + k * warps, sum_over_warp(line));
        }
      }
    }
    if (t.factored) {
      put_columns(tile, vectors, columns);
    }
    Pass<lanes>::put_squares(tile, 0, total);
  }

 private:
  MLX_OPT_FN void put_line(const Tile<lanes>& tile, int line, float sum) {
    const FactorTensor& t = tile.tensor;
    if (threadIdx.x % warp == 0 && line < tile.height) {
      t.scratch.line_sums[tile.across * (t.matrices * tile.lines) + tile.top + line] = sum;
    }
  }

  MLX_OPT_FN void put_columns(const Tile<lanes>& tile, bool vectors, const float (&sums)[lanes]) {
    constexpr int width = Tile<lanes>::width;
    __shared__ float of_warps[warps][width];
#pragma unroll
    for (int lane = 0; lane < lanes; ++lane) {
      of_warps[threadIdx.x / warp][tile.column_of(lane, vectors)] = sums[lane];
    }
    __syncthreads();
    const int column = threadIdx.x;
    if (column < width && tile.left + column < tile.columns) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < warps; ++k) {
        sum += of_warps[k][column];
      }
      const Index row = tile.matrix * static_cast<Index>(tile.tiles_down) + tile.down;
      tile.tensor.scratch.column_sums[row * tile.columns + tile.left + column] = sum;
    }
  }
};

// The new running means of a part of a line, and their factors.
template <int lanes>
MLX_OPT_FN void average_line(
    float (&v)[lanes],
    const float (&g)[lanes],
    const Frame<Adafactor>& frame,
    float (&factors)[lanes]) {
#pragma unroll
  for (int lane = 0; lane < lanes; ++lane) {
    const float x = frame.scale * g[lane];
    v[lane] = Adafactor::average(v[lane], x * x, frame.hypers, frame.scalars);
    factors[lane] = Adafactor::factor(v[lane]);
  }
}

// V, G: the formats of the means of the squares of elements and of the gradient.
template <typename V, typename G, int lanes>
struct FactorUpdateSquares : Pass<lanes> {
  using Pass<lanes>::at_once;

  template <typename Table>
  MLX_OPT_FN void run(const Table& table) {
    if (!is_taken(table)) {
      return;
    }
    const auto tile = Pass<lanes>::tile_of(table);
    const FactorTensor& t = tile.tensor;
    const double sum = t.factored ? factored(table, tile) : unfactored(table, tile);
    Pass<lanes>::put_squares(tile, t.tiles, sum);
  }

 private:
  template <typename Table>
  MLX_OPT_FN float factored(const Table& table, const Tile<lanes>& tile) {
    const float scale = frame_of(table).scale;
    const bool vectors = tile.template allows_vectors<G>(tile.tensor.in[4]);
    const auto factors = Factors<lanes>::of(tile, vectors);
    float total = 0.0f;
    for (int strip = 0; strip < tile.height; strip += Pass<lanes>::strip) {
      const int first = strip + threadIdx.x / warp;
      float g[at_once][lanes];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        tile.template load_line<G, gradient>(table, first + k * warps, vectors, g[k]);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const float of_line = factors.of_line(first + k * warps);
#pragma unroll
        for (int lane = 0; lane < lanes; ++lane) {
          const float u = of_line * factors.of_columns[lane] * (scale * g[k][lane]);
          total = fma(u, u, total);
        }
      }
    }
    return total;
  }

  template <typename Table>
  MLX_OPT_FN float unfactored(const Table& table, const Tile<lanes>& tile) {
    const Frame<Adafactor> frame = frame_of(table);
    const bool vectors = tile.template allows_vectors<V, G>(tile.tensor.in[1], tile.tensor.in[4]);
    float total = 0.0f;
    for (int line = threadIdx.x / warp; line < tile.height; line += warps) {
      float v[lanes], g[lanes], factors[lanes];
      tile.template load_line<V, mean>(table, line, vectors, v);
      tile.template load_line<G, gradient>(table, line, vectors, g);
      average_line(v, g, frame, factors);
      const int count = tile.width_of(line);
#pragma unroll
      for (int lane = 0; lane < lanes; ++lane) {
        const float u = factors[lane] * (frame.scale * g[lane]);
        total = tile.column_of(lane, vectors) < count ? fma(u, u, total) : total;
      }
    }
    return total;
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
