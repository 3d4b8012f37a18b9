// The first pass of a rule of two passes: writes what each threadgroup's elements add to the
// tensor's sums, and updates the slots if the rule has it do so.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::Matrix;

template <typename Format, int count>
MLX_OPT_FN void round_to(thread float* x) {
  for (int lane = 0; lane < count; ++lane) {
    x[lane] = Format::widen(Format::narrow(x[lane]));
  }
}

// Rounds values as storing them does.
template <int count, typename... Formats>
MLX_OPT_FN void round_all(List<Formats...>, thread float* x) {
  int k = 0;
  const int done[] = {(round_to<Formats, count>(x + k * count), ++k)...};
  static_cast<void>(done);
}

template <int count>
MLX_OPT_FN void round_all(List<>, thread float*) {}

// W: the format of the parameter; State: formats of its slots; Out: of the new slots, or none.
template <
    typename Rule,
    typename W,
    typename State,
    typename Gradient,
    typename Out,
    Scaling scaling>
struct UpdateState {
  using Of = TwoPass<Rule>;

  // The addresses of a tensor's operands. A result may share the buffer of the slot that it
  // replaces.
  struct Operands {
    const device uchar* in[Of::fields + 1]; // parameter, state, gradient
    device uchar* out[Of::fields - 1];
  };

  // `staged`: one float for each thread.
  MLX_OPT_FN void flat(
      Operands at,
      constant Tensor& tensor,
      constant float* group_uniforms,
      device float* sums,
      uint group,
      uint index,
      threadgroup float* staged) {
    Each each = {at, uniforms_of<Rule>(group_uniforms, tensor.group), 0, {}};
    const ulong begin = static_cast<ulong>(group - tensor.first_chunk) * chunk;
    over_chunk(each, begin, tensor.size, tensor.vectors, index);
    leave(each.sums, sums, group, index, staged);
  }

  // The gradient's columns are contiguous; see Update. `staged`: a tile.
  MLX_OPT_FN void transposed(
      Operands at,
      constant Matrix& matrix,
      constant float* group_uniforms,
      device float* sums,
      uint group,
      uint index,
      threadgroup float* staged) {
    Each each = {at, uniforms_of<Rule>(group_uniforms, matrix.group), matrix.columns, {}};
    const Tile t = Tile::of(matrix.rows, matrix.columns, group);
    device const uchar* gradient = at.in[Of::fields];
    if (matrix.gradient_vectors) {
      stage<Gradient, vector_width>(gradient, matrix.rows, t, index, staged);
    } else {
      stage<Gradient, 1>(gradient, matrix.rows, t, index, staged);
    }
    wait_for_group();
    if (matrix.vectors) {
      over_tile<vector_width>(each, t, index, staged);
    } else {
      over_tile<1>(each, t, index, staged);
    }
    leave(each.sums, sums, group, index, staged);
  }

  template <typename Index>
  MLX_OPT_FN void strided(
      Operands at,
      constant Strided<Of::fields + 1>& tensor,
      constant float* group_uniforms,
      device float* sums,
      uint group,
      uint index,
      threadgroup float* staged) {
    Each each = {at, uniforms_of<Rule>(group_uniforms, tensor.group), 0, {}};
    over_strided<Index>(each, tensor, group, index);
    leave(each.sums, sums, group, index, staged);
  }

 private:
  using Sums = typename Rule::Sums;
  using Replaced = typename Choice<FirstPass<Rule>::updates_state, State, List<>>::Type;

  struct Places {
    ulong of[Of::fields];
  };

  MLX_OPT_FN Places everywhere(ulong i) {
    Places places;
    for (uint k = 0; k < Of::fields; ++k) {
      places.of[k] = i;
    }
    return places;
  }

  template <int count>
  MLX_OPT_FN void copy_through(Operands at, Places from, ulong to) {
    for (int lane = 0; lane < count; ++lane) {
      Replaced::copy(Out{}, at.in + 1, from.of + 1, at.out, to + lane);
      for (uint k = 0; k < Of::fields; ++k) {
        ++from.of[k];
      }
    }
  }

  MLX_OPT_FN float taken(Scale scale, float gradient) {
    return scaling == Scaling::none ? gradient : scaled(scale, gradient);
  }

  // Returns what the elements add to the sums.
  template <int count>
  MLX_OPT_FN Sums apply(thread float* x, thread const float* g, Uniforms<Rule> uniforms) {
    for (int lane = 0; lane < count; ++lane) {
      const auto e = after_first_pass<Rule>(
          Of::template element<count>(x, lane),
          taken(uniforms.scale, g[lane]),
          uniforms.hypers,
          uniforms.scalars,
          0);
      thread const float* values = reinterpret_cast<thread const float*>(&e);
      for (uint k = 1; k < Of::fields; ++k) {
        x[k * count + lane] = values[k];
      }
    }
    // The second pass reads the stored state, so the sums use that too.
    round_all<count>(Out{}, x + count);
    float added[Of::sums] = {};
    for (int lane = 0; lane < count; ++lane) {
      const Sums own = sums_of<Rule>(
          Of::template element<count>(x, lane),
          taken(uniforms.scale, g[lane]),
          uniforms.hypers,
          uniforms.scalars);
      thread const float* terms = reinterpret_cast<thread const float*>(&own);
      for (uint k = 0; k < Of::sums; ++k) {
        added[k] += terms[k];
      }
    }
    return gathered<Sums>(&added[0]);
  }

  // The same; the new slots are stored to the elements [to, to + count).
  template <int count>
  MLX_OPT_FN Sums
  elements(Operands at, Places from, ulong to, thread const float* g, Uniforms<Rule> uniforms) {
    if (scaling == Scaling::if_finite && !is_finite(uniforms.scale.factor)) {
      copy_through<count>(at, from, to);
      const Sums nothing = {};
      return nothing;
    }
    float x[Of::fields * count];
    Access<W, count>::load(at.in[0], from.of[0], x);
    State::template load<count>(at.in + 1, from.of + 1, x + count);
    const Sums added = apply<count>(x, g, uniforms);
    Out::template store<count>(at.out, to, x + count);
    return added;
  }

  struct Each {
    Operands at;
    Uniforms<Rule> uniforms;
    ulong columns;        // of a matrix
    float sums[Of::sums]; // of this thread's elements

    template <int count>
    void elements(ulong i) {
      float g[count];
      Access<Gradient, count>::load(at.in[Of::fields], i, g);
      add(UpdateState::elements<count>(at, everywhere(i), i, g, uniforms));
    }

    template <int count>
    void elements(ulong row, uint column, threadgroup const float* staged) {
      float g[count];
      for (int lane = 0; lane < count; ++lane) {
        g[lane] = staged[lane];
      }
      const ulong i = row * columns + column;
      add(UpdateState::elements<count>(at, everywhere(i), i, g, uniforms));
    }

    void element(thread const long* places, ulong i) {
      Places from;
      for (uint k = 0; k < Of::fields; ++k) {
        from.of[k] = static_cast<ulong>(places[k]);
      }
      float g[1];
      Access<Gradient, 1>::load(at.in[Of::fields], static_cast<ulong>(places[Of::fields]), g);
      add(UpdateState::elements<1>(at, from, i, g, uniforms));
    }

    void add(Sums own) {
      thread const float* terms = reinterpret_cast<thread const float*>(&own);
      for (uint k = 0; k < Of::sums; ++k) {
        sums[k] += terms[k];
      }
    }
  };

  // Writes what the threadgroup's elements add to the sums.
  MLX_OPT_FN void leave(
      thread const float* own,
      device float* sums,
      uint group,
      uint index,
      threadgroup float* staged) {
    for (uint k = 0; k < Of::sums; ++k) {
      const float sum = sum_over_group(own[k], index, staged);
      if (index == 0) {
        sums[static_cast<ulong>(group) * Of::sums + k] = sum;
      }
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
