// Adafactor's last pass, the update.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// What the update of a tensor reads besides its operands.
struct AdafactorTensorStep {
  Uniforms<Adafactor> uniforms;
  Adafactor::Rates rates;
  bool applied;

  MLX_OPT_FN AdafactorTensorStep
  of(constant AdafactorTensor& t, constant float* group_uniforms, device const float* scratch) {
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    device const float* rates = scratch + t.scratch.rates;
    return {uniforms, {rates[0], rates[1]}, is_applied(t, uniforms)};
  }
};

// G: the format of the gradient; In: of the operands after it; Out: of the results. `moment`: the
// index in In of the first moment, if there is one.
template <typename G, typename In, typename Out, int moment>
struct AdafactorElements {
  enum : int { fields = In::size, has_moment = moment < fields };

  template <int count>
  MLX_OPT_FN void load(
      AdafactorOperands at, AdafactorPlaces from, thread float* g, thread float* x) {
    Access<G, count>::load(at.in[0], from.of[0], g);
    load_behind<count>(at, from, x);
  }

  template <int count>
  MLX_OPT_FN void load_behind(AdafactorOperands at, AdafactorPlaces from, thread float* x) {
    In::template load<count>(at.in + 1, from.of + 1, x);
  }

  // `x`: the loaded operands; `u`: the updates.
  template <int count>
  MLX_OPT_FN void put(
      AdafactorOperands at,
      ulong to,
      thread float* x,
      thread const float* u,
      AdafactorTensorStep step) {
    thread float* m = x + (has_moment ? moment * count : 0);
    for (int lane = 0; lane < count; ++lane) {
      const Adafactor::Element old = {x[lane], has_moment ? m[lane] : 0.0f};
      const auto e = Adafactor::update(old, u[lane], step.uniforms.hypers, step.rates);
      if (has_moment) {
        m[lane] = e.m;
      }
      x[lane] = e.w;
    }
    Out::template store<count>(at.out, to, x);
  }

  // Copies the operands to the results if the step is skipped.
  template <int count>
  MLX_OPT_FN void copy_through(AdafactorOperands at, AdafactorPlaces from, ulong to) {
    for (int lane = 0; lane < count; ++lane) {
      In::copy(Out{}, at.in + 1, from.of + 1, at.out, to + lane);
      for (int k = 1; k <= fields; ++k) {
        ++from.of[k];
      }
    }
  }
};

template <typename G, typename In, typename Out>
struct AdafactorUpdate {
  template <typename Arguments>
  MLX_OPT_FN void run(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device const float* scratch,
      AdafactorOperands at,
      uint group,
      uint index) {
    constant AdafactorTensor& t = arguments.tensor;
    const AdafactorTile tile = AdafactorTile::of(t, group);
    const float mean = scratch[t.scratch.means + tile.matrix];
    Lines<Arguments> each = {
        &arguments,
        at,
        scratch,
        tile,
        Factors::of(t, tile.matrix, mean),
        AdafactorTensorStep::of(t, group_uniforms, scratch),
        {},
        0.0f};
    if (t.vectors) {
      over<vector_width>(each, index);
    } else {
      over<1>(each, index);
    }
  }

  // A transposed gradient is read down its columns into `staged`, the other operands along the
  // rows.
  MLX_OPT_FN void transposed(
      constant AdafactorArguments& arguments,
      constant float* group_uniforms,
      device const float* scratch,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const uint tiles = parts_of(t.rows, tile) * parts_of(t.columns, tile);
    const uint matrix = group / tiles;
    const Tile own = Tile::of(t.rows, t.columns, group % tiles);
    const ulong first = static_cast<ulong>(matrix) * t.rows * t.columns;
    const auto factors = Factors::of(t, matrix, scratch[t.scratch.means + matrix]);
    TransposedElements each = {
        at,
        scratch,
        first,
        t.columns,
        factors,
        AdafactorTensorStep::of(t, group_uniforms, scratch)};
    device const uchar* gradient = at.in[0] + first * sizeof(typename G::Stored);
    if (t.vectors) {
      stage<G, vector_width>(gradient, t.rows, own, index, staged);
    } else {
      stage<G, 1>(gradient, t.rows, own, index, staged);
    }
    wait_for_group();
    if (t.row_vectors) {
      over_tile<vector_width>(each, own, index, staged);
    } else {
      over_tile<1>(each, own, index, staged);
    }
  }

 private:
  using Elements = AdafactorElements<G, In, Out, 1>;

  template <typename Arguments>
  struct Lines {
    constant Arguments* arguments;
    AdafactorOperands at;
    device const float* scratch;
    AdafactorTile tile;
    Factors factors;
    AdafactorTensorStep step;
    float of_columns[adafactor_own];
    float of_line;

    void begin_line(uint line) {
      of_line = Factors::of_line(factors, scratch, tile.top + line);
    }
    template <int count>
    void elements(uint own, ulong i) {
      const AdafactorPlaces from = AdafactorPlaces::by(*arguments, i);
      if (!step.applied) {
        Elements::template copy_through<count>(at, from, i);
        return;
      }
      float u[count], x[Elements::fields * count];
      Elements::template load<count>(at, from, u, x);
      for (int lane = 0; lane < count; ++lane) {
        u[lane] = of_line * of_columns[own + lane] * scaled(step.uniforms.scale, u[lane]);
      }
      Elements::template put<count>(at, i, x, u, step);
    }
    void end_line(uint) {}
  };

  template <int count, typename Arguments>
  MLX_OPT_FN void over(thread Lines<Arguments>& each, uint index) {
    Factors::of_columns<count>(each.factors, each.scratch, each.tile, index, each.of_columns);
    over_lines<count>(each, each.tile, index);
  }

  struct TransposedElements {
    AdafactorOperands at;
    device const float* scratch;
    ulong first;
    ulong columns;
    Factors factors;
    AdafactorTensorStep step;

    template <int count>
    void elements(ulong row, uint column, threadgroup const float* staged) {
      const ulong i = first + row * columns + column;
      const AdafactorPlaces from = {{i, i, i, i}};
      if (!step.applied) {
        Elements::template copy_through<count>(at, from, i);
        return;
      }
      const float of_row = Factors::of_row(factors, scratch, static_cast<uint>(row));
      float u[count], x[Elements::fields * count];
      Elements::template load_behind<count>(at, from, x);
      for (int lane = 0; lane < count; ++lane) {
        const float of_column = Factors::of_column(factors, scratch, column + lane);
        u[lane] = of_row * of_column * scaled(step.uniforms.scale, staged[lane]);
      }
      Elements::template put<count>(at, i, x, u, step);
    }
  };
};

// Updates a tensor that is not factored.
template <typename G, typename In, typename Out>
struct ElementUpdate {
  template <typename Arguments>
  MLX_OPT_FN void run(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device const float* scratch,
      AdafactorOperands at,
      uint group,
      uint index) {
    constant AdafactorTensor& t = arguments.tensor;
    Chunk<Arguments> each = {&arguments, at, AdafactorTensorStep::of(t, group_uniforms, scratch)};
    over_chunk(each, static_cast<ulong>(group) * chunk, t.size, t.vectors, index);
  }

  // The whole step of a tensor of one chunk. Squares: its ElementSquares.
  template <typename Squares, typename Arguments>
  MLX_OPT_FN void alone(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device const float*,
      AdafactorOperands at,
      uint,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    AdafactorTensorStep step = {uniforms, {0.0f, 0.0f}, is_applied(t, uniforms)};
    if (step.applied) {
      const auto sums = Squares::of_chunk(arguments, uniforms, at, 0, index, staged);
      step.rates = AdafactorRates::of(sums.parameter, sums.update, t.size, uniforms);
    }
    Chunk<Arguments> each = {&arguments, at, step};
    over_chunk(each, 0, t.size, t.vectors, index);
  }

 private:
  using Elements = AdafactorElements<G, In, Out, 2>;

  template <typename Arguments>
  struct Chunk {
    constant Arguments* arguments;
    AdafactorOperands at;
    AdafactorTensorStep step;

    template <int count>
    void elements(ulong i) {
      const AdafactorPlaces from = AdafactorPlaces::by(*arguments, i);
      if (!step.applied) {
        Elements::template copy_through<count>(at, from, i);
        return;
      }
      float u[count], factors[count], x[Elements::fields * count];
      Elements::template load<count>(at, from, u, x);
      average_elements<count>(x + count, u, step.uniforms, factors);
      for (int lane = 0; lane < count; ++lane) {
        u[lane] = factors[lane] * scaled(step.uniforms.scale, u[lane]);
      }
      Elements::template put<count>(at, i, x, u, step);
    }
  };
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
