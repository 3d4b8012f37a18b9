// Adafactor's last pass, the update.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// W, V, M, G: the formats of the parameter, the running means of elements, the first moment and the
// gradient; then those of the results.
template <
    typename W,
    typename V,
    typename M,
    typename G,
    typename NewW,
    typename NewV,
    typename NewM,
    bool has_moment,
    int vector_width>
struct AdafactorUpdate : Pass<vector_width> {
  using Pass<vector_width>::at_once;
  // Rows of a transposed gradient that go through shared memory at once.
  static constexpr int rows_at_once = warp;
  static constexpr int parts = cuda::adafactor_rows / warp;

  template <typename Table>
  MLX_OPT_FN void run(const Table& table) {
    const auto tile = Pass<vector_width>::tile_of(table);
    const AdafactorTensor& t = tile.tensor;
    if (!is_applied(table)) {
      copy_through(table, tile);
      return;
    }
    if (!t.factored) {
      unfactored(table, tile);
    } else if (vector_width > 1 && t.transposed) {
      transposed(table, tile);
    } else {
      factored(table, tile);
    }
  }

 private:
  template <int count>
  MLX_OPT_FN void apply(
      float (&w)[count],
      float (&m)[count],
      const float (&u)[count],
      const Uniforms<Adafactor>& uniforms,
      Adafactor::Rates rates) {
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      const auto e = Adafactor::update(
          {w[lane], has_moment ? m[lane] : 0.0f}, u[lane], uniforms.hypers, rates);
      w[lane] = e.w;
      m[lane] = e.m;
    }
  }

  MLX_OPT_FN Adafactor::Rates rates_of(const AdafactorTensor& t) {
    return {t.scratch.rates[0], t.scratch.rates[1]};
  }

  template <typename Table>
  MLX_OPT_FN void factored(const Table& table, const Tile<vector_width>& tile) {
    const AdafactorTensor& t = tile.tensor;
    const Uniforms<Adafactor> uniforms = uniforms_of(table, t);
    const auto rates = rates_of(t);
    const bool vectors = tile.template allows_vectors<W, G, NewW>(t.in[0], t.in[4], t.out[0]) &&
                         (!has_moment || tile.template allows_vectors<M, NewM>(t.in[3], t.out[3]));
    const auto factors = Factors<vector_width>::of(tile, vectors);
    for (int strip = 0; strip < tile.height; strip += Pass<vector_width>::strip) {
      const int first = strip + threadIdx.x / warp;
      Raw<W, vector_width> stored_w[at_once];
      Raw<M, vector_width> stored_m[at_once];
      Raw<G, vector_width> stored_g[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const int line = first + k * warps;
        tile.template load_line<gradient>(table, line, vectors, stored_g[k]);
        tile.template load_line<parameter>(table, line, vectors, stored_w[k]);
        if (has_moment) {
          tile.template load_line<first_moment>(table, line, vectors, stored_m[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const int line = first + k * warps;
        float w[vector_width], m[vector_width], g[vector_width], u[vector_width];
        stored_w[k].widen(w);
        stored_m[k].widen(m);
        stored_g[k].widen(g);
        const float of_line = factors.of_line(line);
#pragma unroll
        for (int lane = 0; lane < vector_width; ++lane) {
          u[lane] = of_line * factors.of_columns[lane] * (uniforms.scale * g[lane]);
        }
        apply(w, m, u, uniforms, rates);
        tile.template store_line<NewW>(t.out[0], line, vectors, w);
        if (has_moment) {
          tile.template store_line<NewM>(t.out[3], line, vectors, m);
        }
      }
    }
  }

  // The tile's lines are the matrix's columns. The gradient is read down the columns into shared
  // memory, the other operands along the rows.
  template <typename Table>
  MLX_OPT_FN void transposed(const Table& table, const Tile<vector_width>& tile) {
    __shared__ float strip[rows_at_once][cuda::adafactor_rows + 1];
    const AdafactorTensor& t = tile.tensor;
    const Index first_column = static_cast<Index>(tile.down) * cuda::adafactor_rows;
    const Index remaining = t.rows - tile.left;
    const int height = remaining < Tile<vector_width>::width ? static_cast<int>(remaining)
                                                             : Tile<vector_width>::width;
    const TransposedFactors factors = transposed_factors(tile, first_column, height);
    for (int top = 0; top < height; top += rows_at_once) {
      __syncthreads();
      const int own = threadIdx.x % warp;
      for (int line = threadIdx.x / warp; line < tile.height; line += warps) {
        float x[1] = {0.0f};
        if (top + own < height) {
          load<G>(t.in[4], tile.begin_of(line) + top + own, x);
        }
        strip[own][line] = x[0];
      }
      __syncthreads();
      update_strip(table, tile, first_column, top, height, strip, factors);
    }
  }

  // The factors of the thread's columns and of its warp's rows: lane k holds that of row `warps *
  // k`.
  struct TransposedFactors {
    float of_columns[parts];
    float of_rows;
  };

  MLX_OPT_FN TransposedFactors
  transposed_factors(const Tile<vector_width>& tile, Index first_column, int height) {
    static_assert(Tile<vector_width>::width / warps <= warp, "a lane for each row of a warp");
    const AdafactorTensor& t = tile.tensor;
    const int own = threadIdx.x % warp;
    TransposedFactors factors;
#pragma unroll
    for (int k = 0; k < parts; ++k) {
      const Index column = first_column + own + k * warp;
      factors.of_columns[k] =
          column < t.columns ? t.scratch.column_factors[tile.matrix * t.columns + column] : 1.0f;
    }
    const int row = threadIdx.x / warp + warps * own;
    const float mean = mean_row(t, tile.matrix);
    const float x =
        row < height ? t.scratch.row_means[tile.matrix * t.rows + tile.left + row] : 1.0f;
    factors.of_rows = Adafactor::row_factor(x, mean);
    return factors;
  }

  template <typename Table>
  MLX_OPT_FN void update_strip(
      const Table& table,
      const Tile<vector_width>& tile,
      Index first_column,
      int top,
      int height,
      const float (&strip)[rows_at_once][cuda::adafactor_rows + 1],
      const TransposedFactors& factors) {
    const AdafactorTensor& t = tile.tensor;
    const Index first_row = tile.matrix * t.rows + tile.left;
    const int own = threadIdx.x % warp;
    const auto place = [&](int row, int part) {
      return (first_row + top + row) * t.columns + first_column + own + part * warp;
    };
    const auto inside = [&](int row, int part) {
      return top + row < height && own + part * warp < tile.height;
    };
    constexpr int count = rows_at_once / warps;
    float w[count][parts][1], m[count][parts][1];
#pragma unroll
    for (int k = 0; k < count * parts; ++k) {
      const int row = threadIdx.x / warp + k / parts * warps;
      if (inside(row, k % parts)) {
        load<W>(t.in[0], place(row, k % parts), w[k / parts][k % parts]);
        if (has_moment) {
          load<M>(t.in[3], place(row, k % parts), m[k / parts][k % parts]);
        }
      }
    }
    const Uniforms<Adafactor> uniforms = uniforms_of(table, t);
    const auto rates = rates_of(t);
#pragma unroll
    for (int k = 0; k < count * parts; ++k) {
      const int row = threadIdx.x / warp + k / parts * warps;
      const float of_row = __shfl_sync(0xffffffffu, factors.of_rows, (top + row) / warps);
      if (inside(row, k % parts)) {
        const float g = uniforms.scale * strip[row][own + k % parts * warp];
        const float u[1] = {of_row * factors.of_columns[k % parts] * g};
        auto& new_w = w[k / parts][k % parts];
        auto& new_m = m[k / parts][k % parts];
        apply(new_w, new_m, u, uniforms, rates);
        store<NewW>(t.out[0], place(row, k % parts), new_w);
        if (has_moment) {
          store<NewM>(t.out[3], place(row, k % parts), new_m);
        }
      }
    }
  }

  template <typename Table>
  MLX_OPT_FN void unfactored(const Table& table, const Tile<vector_width>& tile) {
    const AdafactorTensor& t = tile.tensor;
    const Uniforms<Adafactor> uniforms = uniforms_of(table, t);
    const auto rates = rates_of(t);
    const bool vectors = tile.template allows_vectors<W, V, G, NewW, NewV>(
                             t.in[0], t.in[1], t.in[4], t.out[0], t.out[1]) &&
                         (!has_moment || tile.template allows_vectors<M, NewM>(t.in[3], t.out[3]));
    for (int line = threadIdx.x / warp; line < tile.height; line += warps) {
      Raw<W, vector_width> stored_w;
      Raw<V, vector_width> stored_v;
      Raw<M, vector_width> stored_m;
      Raw<G, vector_width> stored_g;
      tile.template load_line<parameter>(table, line, vectors, stored_w);
      tile.template load_line<mean>(table, line, vectors, stored_v);
      tile.template load_line<gradient>(table, line, vectors, stored_g);
      if (has_moment) {
        tile.template load_line<first_moment>(table, line, vectors, stored_m);
      }
      float w[vector_width], v[vector_width], m[vector_width], g[vector_width],
          factors[vector_width];
      stored_w.widen(w);
      stored_v.widen(v);
      stored_m.widen(m);
      stored_g.widen(g);
      average_line(v, g, uniforms, factors);
#pragma unroll
      for (int lane = 0; lane < vector_width; ++lane) {
        g[lane] = factors[lane] * (uniforms.scale * g[lane]);
      }
      apply(w, m, g, uniforms, rates);
      tile.template store_line<NewW>(t.out[0], line, vectors, w);
      tile.template store_line<NewV>(t.out[1], line, vectors, v);
      if (has_moment) {
        tile.template store_line<NewM>(t.out[3], line, vectors, m);
      }
    }
  }

  // Copies the operands to the results if the step is skipped.
  template <typename Table>
  MLX_OPT_FN void copy_through(const Table& table, const Tile<vector_width>& tile) {
    const AdafactorTensor& t = tile.tensor;
    for (int line = threadIdx.x / warp; line < tile.height; line += warps) {
      const int count = tile.width_of(line);
      for (int column = threadIdx.x % warp; column < count; column += warp) {
        const Index i = tile.begin_of(line) + column;
        copy<W, NewW>(t.in[0], place_of<parameter>(table, i), t.out[0], i);
        if (!t.factored) {
          copy<V, NewV>(t.in[1], place_of<mean>(table, i), t.out[1], i);
        }
        if (has_moment) {
          copy<M, NewM>(t.in[3], place_of<first_moment>(table, i), t.out[3], i);
        }
      }
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
