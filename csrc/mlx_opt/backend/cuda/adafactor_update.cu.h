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
      return;
    }
    if constexpr (vector_width > 1) {
      if (t.transposed) {
        transposed(table, tile);
        return;
      }
    }
    factored(table, tile);
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
          u[lane] = of_line * factors.of_columns[lane] * taken(uniforms.scale, g[lane]);
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
    __shared__ typename Strip::Memory strip;
    __shared__ float of_rows[Tile<vector_width>::width];
    __shared__ Patch<1, cuda::adafactor_rows, 1> of_columns;
    const AdafactorTensor& t = tile.tensor;
    const Uniforms<Adafactor> uniforms = uniforms_of(table, t);
    const auto rates = rates_of(t);
    const Index first_row = tile.matrix * t.rows + tile.left;
    const Index first_column = static_cast<Index>(tile.down) * cuda::adafactor_rows;
    const int height = tile.width_of(0);
    const bool down = tile.template allows_vectors<G>(t.in[4]);
    const bool along = t.columns % vector_width == 0 && has_aligned_rows(t);
    if (threadIdx.x < Tile<vector_width>::width) {
      const float x = threadIdx.x < height ? t.scratch.row_means[first_row + threadIdx.x] : 1.0f;
      const float mean = mean_row(t, tile.matrix);
      of_rows[threadIdx.x] = Adafactor::row_factor(x, mean);
    }
    if (threadIdx.x < cuda::adafactor_rows) {
      const Index column = first_column + threadIdx.x;
      of_columns.at(0, threadIdx.x) =
          column < t.columns ? t.scratch.column_factors[tile.matrix * t.columns + column] : 1.0f;
    }
    const auto part_of = [&](int row) -> Row {
      const Index begin = (first_row + row) * t.columns + first_column;
      return {begin, row < height ? tile.height : 0, along};
    };
    for (int top = 0; top < height; top += strip_height) {
      Strip gradient;
      Raw<W, vector_width> stored_w[rows_of_thread];
      Raw<M, vector_width> stored_m[rows_of_thread];
      const Index begin = tile.begin_of(0) + top;
      gradient.load(t.in[4], begin, tile.columns, height - top, tile.height, down);
#pragma unroll
      for (int k = 0; k < rows_of_thread; ++k) {
        const Row part = part_of(top + row_of(k));
        part.template load<W>(t.in[0], stored_w[k]);
        if (has_moment) {
          part.template load<M>(t.in[3], stored_m[k]);
        }
      }
      __syncthreads();
      gradient.put(strip);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < rows_of_thread; ++k) {
        const int row = row_of(k);
        const Row part = part_of(top + row);
        float w[vector_width], m[vector_width], u[vector_width], columns[vector_width];
        stored_w[k].widen(w);
        stored_m[k].widen(m);
        get_row(strip, row, along, u);
        get_row(of_columns, 0, along, columns);
        const float of_row = of_rows[top + row];
#pragma unroll
        for (int lane = 0; lane < vector_width; ++lane) {
          u[lane] = of_row * columns[lane] * taken(uniforms.scale, u[lane]);
        }
        apply(w, m, u, uniforms, rates);
        part.template store<NewW>(t.out[0], w);
        if (has_moment) {
          part.template store<NewM>(t.out[3], m);
        }
      }
    }
  }

  // The rows of a transposed gradient that go through shared memory at once: as many as fill a
  // cache line of each column, unless a thread has too few registers for that.
  static constexpr int strip_height = (has_moment && vector_width == 8 ? 4 : 8) * vector_width;
  static constexpr int threads_across = cuda::adafactor_rows / vector_width;
  static constexpr int rows_of_thread = strip_height * threads_across / threads;
  using Strip = PatchLoads<G, vector_width, strip_height, cuda::adafactor_rows>;
  using Row = Line<vector_width, threads_across>;

  MLX_OPT_FN int row_of(int k) {
    return threadIdx.x / threads_across + k * (threads / threads_across);
  }

  MLX_OPT_FN bool has_aligned_rows(const AdafactorTensor& t) {
    const void* const all[] = {t.in[0], t.out[0]};
    const void* const moments[] = {t.in[3], t.out[3]};
    return List<W, NewW>::template aligned<vector_width>(all) &&
           (!has_moment || List<M, NewM>::template aligned<vector_width>(moments));
  }

  template <typename Memory>
  MLX_OPT_FN void get_row(Memory& patch, int row, bool vectors, float (&to)[vector_width]) {
    if (vectors) {
      patch.get(row, Row::column_of(0, true), to);
      return;
    }
#pragma unroll
    for (int lane = 0; lane < vector_width; ++lane) {
      to[lane] = patch.at(row, Row::column_of(lane, false));
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
        g[lane] = factors[lane] * taken(uniforms.scale, g[lane]);
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
