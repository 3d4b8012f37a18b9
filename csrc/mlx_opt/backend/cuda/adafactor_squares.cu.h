// Adafactor's passes that sum squares: those of the gradient and the parameter, and those of the
// update.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The column sums need registers, so fewer lines of half-precision elements are loaded at once.
template <int vector_width>
using SquaresPass = Pass<vector_width, vector_width == 1 ? 1 : 16 / vector_width>;

// W, G: the formats of the parameter and the gradient.
template <typename W, typename G, int vector_width>
struct AdafactorSquares : SquaresPass<vector_width> {
  using Own = SquaresPass<vector_width>;
  using Own::at_once;

  template <typename Table>
  MLX_OPT_FN void run(const Table& table) {
    if (!is_applied(table)) {
      return;
    }
    const auto tile = Own::tile_of(table);
    const AdafactorTensor& t = tile.tensor;
    const Scale scale = uniforms_of(table, t).scale;
    const bool vectors = tile.template allows_vectors<W, G>(t.in[0], t.in[4]);
    float columns[vector_width] = {};
    float total = 0.0f;
    for (int strip = threadIdx.x / warp; strip < tile.height; strip += Own::strip) {
      Raw<W, vector_width> stored_w[at_once];
      Raw<G, vector_width> stored_g[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        tile.template load_line<parameter>(table, strip + k * warps, vectors, stored_w[k]);
        tile.template load_line<gradient>(table, strip + k * warps, vectors, stored_g[k]);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        float w[vector_width], g[vector_width];
        stored_w[k].widen(w);
        stored_g[k].widen(g);
        float line = 0.0f;
#pragma unroll
        for (int lane = 0; lane < vector_width; ++lane) {
          const float x = taken(scale, g[lane]);
          total = fma(w[lane], w[lane], total);
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
    Own::put_squares(tile, 0, total);
  }

 private:
  MLX_OPT_FN void put_line(const Tile<vector_width>& tile, int line, float sum) {
    const AdafactorTensor& t = tile.tensor;
    if (threadIdx.x % warp == 0 && line < tile.height) {
      t.scratch.line_sums[tile.across * (t.matrices * tile.lines) + tile.top + line] = sum;
    }
  }

  MLX_OPT_FN void put_columns(
      const Tile<vector_width>& tile, bool vectors, const float (&sums)[vector_width]) {
    constexpr int width = Tile<vector_width>::width;
    __shared__ float of_warps[warps][width];
#pragma unroll
    for (int lane = 0; lane < vector_width; ++lane) {
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

// V, G: the formats of the running means of elements and of the gradient.
template <typename V, typename G, int vector_width>
struct AdafactorUpdateSquares : Pass<vector_width> {
  using Pass<vector_width>::at_once;

  template <typename Table>
  MLX_OPT_FN void run(const Table& table) {
    if (!is_applied(table)) {
      return;
    }
    const auto tile = Pass<vector_width>::tile_of(table);
    const AdafactorTensor& t = tile.tensor;
    const double sum = t.factored ? factored(table, tile) : unfactored(table, tile);
    Pass<vector_width>::put_squares(tile, t.tiles, sum);
  }

 private:
  template <typename Table>
  MLX_OPT_FN float factored(const Table& table, const Tile<vector_width>& tile) {
    const Scale scale = uniforms_of(table, tile.tensor).scale;
    const bool vectors = tile.template allows_vectors<G>(tile.tensor.in[4]);
    const auto factors = Factors<vector_width>::of(tile, vectors);
    float total = 0.0f;
    for (int strip = 0; strip < tile.height; strip += Pass<vector_width>::strip) {
      const int first = strip + threadIdx.x / warp;
      Raw<G, vector_width> stored[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        tile.template load_line<gradient>(table, first + k * warps, vectors, stored[k]);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        float g[vector_width];
        stored[k].widen(g);
        const float of_line = factors.of_line(first + k * warps);
#pragma unroll
        for (int lane = 0; lane < vector_width; ++lane) {
          const float u = of_line * factors.of_columns[lane] * taken(scale, g[lane]);
          total = fma(u, u, total);
        }
      }
    }
    return total;
  }

  template <typename Table>
  MLX_OPT_FN float unfactored(const Table& table, const Tile<vector_width>& tile) {
    const Uniforms<Adafactor> uniforms = uniforms_of(table, tile.tensor);
    const bool vectors = tile.template allows_vectors<V, G>(tile.tensor.in[1], tile.tensor.in[4]);
    float total = 0.0f;
    for (int line = threadIdx.x / warp; line < tile.height; line += warps) {
      Raw<V, vector_width> stored_v;
      Raw<G, vector_width> stored_g;
      tile.template load_line<mean>(table, line, vectors, stored_v);
      tile.template load_line<gradient>(table, line, vectors, stored_g);
      float v[vector_width], g[vector_width], factors[vector_width];
      stored_v.widen(v);
      stored_g.widen(g);
      average_line(v, g, uniforms, factors);
      const int count = tile.width_of(line);
#pragma unroll
      for (int lane = 0; lane < vector_width; ++lane) {
        const float u = factors[lane] * taken(uniforms.scale, g[lane]);
        total = tile.column_of(lane, vectors) < count ? fma(u, u, total) : total;
      }
    }
    return total;
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
