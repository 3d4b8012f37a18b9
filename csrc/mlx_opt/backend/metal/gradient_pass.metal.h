// The second pass of a rule of two passes that reads the gradient again: updates the parameter, and
// the slots if the first pass has not. Compiled after state_pass.metal.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The new element, of which only the parameter is used if the first pass has updated the slots.
template <typename Element>
MLX_OPT_FN Element with_parameter(Element e, float w) {
  e.w = w;
  return e;
}

template <typename Element>
MLX_OPT_FN Element with_parameter(Element, Element next) {
  return next;
}

// W: the format of the parameter; State: formats of its slots, which are new if the first pass has
// updated them; Out: formats of what the pass updates.
template <
    typename Rule,
    typename W,
    typename State,
    typename Gradient,
    typename Out,
    Scaling scaling>
struct FinishWithGradient;

template <
    typename Rule,
    typename W,
    typename... State,
    typename Gradient,
    typename Out,
    Scaling scaling>
struct FinishWithGradient<Rule, W, List<State...>, Gradient, Out, scaling> {
  using Of = TwoPass<Rule>;
  using Element = typename Rule::Element;
  using Rates = typename Rule::Rates;
  using In = List<W, State...>;
  using Replaced = typename Choice<FirstPass<Rule>::updates_state, List<W>, In>::Type;

  struct Operands {
    const device uchar* in[Of::fields + 1]; // parameter, slots, gradient
    device uchar* out[Out::size];           // may be buffers of the operands
  };

  // `rates`: the tensor's.
  MLX_OPT_FN void flat(
      Operands at,
      constant Tensor& tensor,
      constant float* group_uniforms,
      device const float* rates,
      uint group,
      uint index) {
    Each each = each_of(at, group_uniforms, tensor.group, rates, 0);
    const ulong begin = static_cast<ulong>(group - tensor.first_chunk) * chunk;
    over_chunk(each, begin, tensor.size, tensor.vectors, index);
  }

  // The gradient's columns are contiguous; see Update. `staged`: a tile.
  MLX_OPT_FN void transposed(
      Operands at,
      constant Matrix& matrix,
      constant float* group_uniforms,
      device const float* rates,
      uint group,
      uint index,
      threadgroup float* staged) {
    Each each = each_of(at, group_uniforms, matrix.group, rates, matrix.columns);
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
  }

  // Operands of any layout.
  template <typename Index>
  MLX_OPT_FN void strided(
      Operands at,
      constant Strided<Of::fields + 1>& tensor,
      constant float* group_uniforms,
      device const float* rates,
      uint group,
      uint index) {
    Each each = each_of(at, group_uniforms, tensor.group, rates, 0);
    over_strided<Index>(each, tensor, group, index);
  }

 private:
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

  // The results are stored to the elements [to, to + count).
  template <int count>
  MLX_OPT_FN void elements(
      Operands at,
      Places from,
      ulong to,
      thread const float* g,
      Uniforms<Rule> uniforms,
      Rates rates) {
    if (scaling == Scaling::if_finite && !is_finite(uniforms.scale.factor)) {
      for (int lane = 0; lane < count; ++lane) {
        Replaced::copy(Out{}, at.in, from.of, at.out, to + lane);
        for (uint k = 0; k < Of::fields; ++k) {
          ++from.of[k];
        }
      }
      return;
    }
    float x[Of::fields * count];
    In::template load<count>(at.in, from.of, x);
    for (int lane = 0; lane < count; ++lane) {
      const Element e = Of::template element<count>(x, lane);
      const float gradient = scaling == Scaling::none ? g[lane] : scaled(uniforms.scale, g[lane]);
      const Element next =
          with_parameter(e, Rule::update(e, gradient, uniforms.hypers, uniforms.scalars, rates));
      thread const float* values = reinterpret_cast<thread const float*>(&next);
      for (uint k = 0; k < Of::fields; ++k) {
        x[k * count + lane] = values[k];
      }
    }
    Out::template store<count>(at.out, to, x);
  }

  struct Each {
    Operands at;
    Uniforms<Rule> uniforms;
    Rates rates;
    ulong columns; // of a matrix

    template <int count>
    void elements(ulong i) {
      float g[count];
      Access<Gradient, count>::load(at.in[Of::fields], i, g);
      FinishWithGradient::elements<count>(at, everywhere(i), i, g, uniforms, rates);
    }

    template <int count>
    void elements(ulong row, uint column, threadgroup const float* staged) {
      float g[count];
      for (int lane = 0; lane < count; ++lane) {
        g[lane] = staged[lane];
      }
      const ulong i = row * columns + column;
      FinishWithGradient::elements<count>(at, everywhere(i), i, g, uniforms, rates);
    }

    void element(thread const long* places, ulong i) {
      Places from;
      for (uint k = 0; k < Of::fields; ++k) {
        from.of[k] = static_cast<ulong>(places[k]);
      }
      float g[1];
      Access<Gradient, 1>::load(at.in[Of::fields], static_cast<ulong>(places[Of::fields]), g);
      FinishWithGradient::elements<1>(at, from, i, g, uniforms, rates);
    }
  };

  MLX_OPT_FN Each each_of(
      Operands at,
      constant float* group_uniforms,
      uint group,
      device const float* rates,
      ulong columns) {
    return {at, uniforms_of<Rule>(group_uniforms, group), gathered<Rates>(rates), columns};
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
