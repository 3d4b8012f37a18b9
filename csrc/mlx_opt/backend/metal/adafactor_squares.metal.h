// Adafactor's passes that sum squares: those of the gradient and the parameter, and those of the
// update.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// G, W: the formats of the gradient and the parameter.
template <typename G, typename W>
struct AdafactorSquares {
  template <typename Arguments>
  MLX_OPT_FN void run(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device float* scratch,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    if (!is_applied(t, uniforms)) {
      return;
    }
    if (t.vectors) {
      of_tile<vector_width>(arguments, uniforms.scale, scratch, at, group, index, staged);
    } else {
      of_tile<1>(arguments, uniforms.scale, scratch, at, group, index, staged);
    }
  }

 private:
  template <typename Arguments>
  struct Lines {
    constant Arguments* arguments;
    AdafactorOperands at;
    Scale scale;
    uint index;
    threadgroup float* staged;
    float columns[adafactor_own];
    float line_sum, parameter_sum;

    void begin_line(uint) {
      line_sum = 0.0f;
    }
    template <int count>
    void elements(uint own, ulong i) {
      const AdafactorPlaces from = AdafactorPlaces::by(*arguments, i);
      float g[count], w[count];
      Access<G, count>::load(at.in[0], from.of[0], g);
      Access<W, count>::load(at.in[1], from.of[1], w);
      for (int lane = 0; lane < count; ++lane) {
        const float x = scaled(scale, g[lane]);
        parameter_sum = fma(w[lane], w[lane], parameter_sum);
        line_sum = fma(x, x, line_sum);
        columns[own + lane] = fma(x, x, columns[own + lane]);
      }
    }
    void end_line(uint line) {
      staged[line * adafactor_pitch + index % adafactor_across] = line_sum;
    }
  };

  template <int count, typename Arguments>
  MLX_OPT_FN void of_tile(
      constant Arguments& arguments,
      Scale scale,
      device float* scratch,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const AdafactorTile tile = AdafactorTile::of(t, group);
    Lines<Arguments> each = {&arguments, at, scale, index, staged, {}, 0.0f, 0.0f};
    over_lines<count>(each, tile, index);
    wait_for_group();
    put_lines(t, tile, scratch, index, staged);
    wait_for_group();
    for (uint own = 0; own < adafactor_own; own += count) {
      const uint column = AdafactorTile::column_of<count>(own, index);
      for (int lane = 0; lane < count; ++lane) {
        staged[index / adafactor_across * adafactor_columns + column + lane] =
            each.columns[own + lane];
      }
    }
    wait_for_group();
    put_columns(t, tile, scratch, index, staged);
    const float sum = sum_over_group(each.parameter_sum, index, staged);
    if (index == 0) {
      scratch[t.scratch.parameter_squares + group] = sum;
    }
  }

  MLX_OPT_FN void put_lines(
      constant AdafactorTensor& t,
      AdafactorTile tile,
      device float* scratch,
      uint index,
      threadgroup const float* staged) {
    const ulong all_lines = static_cast<ulong>(t.matrices) * tile.lines;
    const ulong first = t.scratch.line_sums + tile.across * all_lines +
                        static_cast<ulong>(tile.matrix) * tile.lines + tile.top;
    for (uint line = index; line < tile.height; line += threads) {
      float sum = 0.0f;
      for (uint k = 0; k < adafactor_across; ++k) {
        sum += staged[line * adafactor_pitch + k];
      }
      scratch[first + line] = sum;
    }
  }

  MLX_OPT_FN void put_columns(
      constant AdafactorTensor& t,
      AdafactorTile tile,
      device float* scratch,
      uint index,
      threadgroup const float* staged) {
    const ulong row = static_cast<ulong>(tile.matrix) * tile.tiles_down + tile.down;
    const ulong first = t.scratch.column_sums + row * tile.columns + tile.left;
    for (uint column = index; column < tile.width; column += threads) {
      float sum = 0.0f;
      for (uint k = 0; k < threads / adafactor_across; ++k) {
        sum += staged[k * adafactor_columns + column];
      }
      scratch[first + column] = sum;
    }
  }
};

// G: the format of the gradient.
template <typename G>
struct AdafactorUpdateSquares {
  template <typename Arguments>
  MLX_OPT_FN void run(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device float* scratch,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    if (!is_applied(t, uniforms)) {
      return;
    }
    const AdafactorTile tile = AdafactorTile::of(t, group);
    const uint totals = parts_of(t.rows, threads / t.row_split);
    const ulong first = t.scratch.totals + static_cast<ulong>(tile.matrix) * totals;
    const float mean = sum_of(scratch, first, totals, index, staged) / static_cast<float>(t.rows);
    if (tile.down == 0 && tile.across == 0 && index == 0) {
      scratch[t.scratch.means + tile.matrix] = mean;
    }
    Lines<Arguments> each = {
        &arguments,
        at,
        scratch,
        tile,
        Factors::of(t, tile.matrix, mean),
        uniforms.scale,
        {},
        0.0f,
        0.0f};
    const float own = t.vectors ? own_sum<vector_width>(each, index) : own_sum<1>(each, index);
    const float sum = sum_over_group(own, index, staged);
    if (index == 0) {
      scratch[t.scratch.update_squares + group] = sum;
    }
  }

 private:
  template <typename Arguments>
  struct Lines {
    constant Arguments* arguments;
    AdafactorOperands at;
    device const float* scratch;
    AdafactorTile tile;
    Factors factors;
    Scale scale;
    float of_columns[adafactor_own];
    float of_line, total;

    void begin_line(uint line) {
      of_line = Factors::of_line(factors, scratch, tile.top + line);
    }
    template <int count>
    void elements(uint own, ulong i) {
      float g[count];
      Access<G, count>::load(at.in[0], AdafactorPlaces::by(*arguments, i).of[0], g);
      for (int lane = 0; lane < count; ++lane) {
        const float u = of_line * of_columns[own + lane] * scaled(scale, g[lane]);
        total = fma(u, u, total);
      }
    }
    void end_line(uint) {}
  };

  template <int count, typename Arguments>
  MLX_OPT_FN float own_sum(thread Lines<Arguments>& each, uint index) {
    Factors::of_columns<count>(each.factors, each.scratch, each.tile, index, each.of_columns);
    over_lines<count>(each, each.tile, index);
    return each.total;
  }
};

// Updates the running means of elements and computes their factors.
template <int count>
MLX_OPT_FN void average_elements(
    thread float* v, thread const float* g, Uniforms<Adafactor> uniforms, thread float* factors) {
  for (int lane = 0; lane < count; ++lane) {
    const float x = scaled(uniforms.scale, g[lane]);
    v[lane] = Adafactor::average(v[lane], x * x, uniforms.hypers, uniforms.scalars);
    factors[lane] = Adafactor::factor(v[lane]);
  }
}

// Sums the squares of the parameter and the update of a tensor that is not factored. V: the format
// of the running means of elements.
template <typename G, typename W, typename V>
struct ElementSquares {
  template <typename Arguments>
  MLX_OPT_FN void run(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device float* scratch,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    if (!is_applied(t, uniforms)) {
      return;
    }
    const Sums sums = of_chunk(arguments, uniforms, at, group, index, staged);
    if (index == 0) {
      scratch[t.scratch.parameter_squares + group] = sums.parameter;
      scratch[t.scratch.update_squares + group] = sums.update;
    }
  }

  struct Sums {
    float parameter, update;
  };

  template <typename Arguments>
  MLX_OPT_FN Sums of_chunk(
      constant Arguments& arguments,
      Uniforms<Adafactor> uniforms,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    Chunk<Arguments> each = {&arguments, at, uniforms, 0.0f, 0.0f};
    over_chunk(each, static_cast<ulong>(group) * chunk, t.size, t.vectors, index);
    const float parameter = sum_over_group(each.parameter_sum, index, staged);
    return {parameter, sum_over_group(each.update_sum, index, staged)};
  }

 private:
  template <typename Arguments>
  struct Chunk {
    constant Arguments* arguments;
    AdafactorOperands at;
    Uniforms<Adafactor> uniforms;
    float parameter_sum, update_sum;

    template <int count>
    void elements(ulong i) {
      const AdafactorPlaces from = AdafactorPlaces::by(*arguments, i);
      float g[count], w[count], v[count], factors[count];
      Access<G, count>::load(at.in[0], from.of[0], g);
      Access<W, count>::load(at.in[1], from.of[1], w);
      Access<V, count>::load(at.in[2], from.of[2], v);
      average_elements<count>(v, g, uniforms, factors);
      for (int lane = 0; lane < count; ++lane) {
        const float u = factors[lane] * scaled(uniforms.scale, g[lane]);
        parameter_sum = fma(w[lane], w[lane], parameter_sum);
        update_sum = fma(u, u, update_sum);
      }
    }
  };
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
