// The kernels of an update, generic over the rule and the storage of each operand. Metal compiles
// this text on first use, after the rule and the files that kernel_program.cpp names; it includes
// nothing. C++14, and every pointer has an address space.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::Matrix;
using metal::Strided;
using metal::Tensor;

// Rounds results to nearest, which storing them does.
struct Nearest {
  template <int count, typename Out>
  MLX_OPT_FN void round(Out, thread float*, uint, float, ulong) {}
};

// In: formats of the parameter and its slots; Out: of their new values. Rounding: Nearest or
// Stochastic.
template <
    typename Rule,
    typename In,
    typename Gradient,
    typename Out,
    Scaling scaling,
    typename Rounding = Nearest>
struct Update {
  using Element = typename Rule::Element;
  enum : int { fields = sizeof(Element) / sizeof(float) };

  // The addresses of a tensor's operands. A result may share an input's buffer, usually of the same
  // slot: each element is written by the thread that read it.
  struct Operands {
    const device uchar* in[fields];
    const device uchar* gradient;
    device uchar* out[fields];
    uint rounding_key; // for Stochastic
  };

  // The index of one element, or of `count` adjacent ones, in each operand but the gradient.
  struct Places {
    ulong of[fields];
  };

  MLX_OPT_FN Places everywhere(ulong i) {
    Places places;
    for (int k = 0; k < fields; ++k) {
      places.of[k] = i;
    }
    return places;
  }

  template <int count>
  MLX_OPT_FN void apply(thread float* x, thread const float* g, Uniforms<Rule> uniforms) {
    for (int lane = 0; lane < count; ++lane) {
      Element e;
      thread float* values = reinterpret_cast<thread float*>(&e);
      for (int k = 0; k < fields; ++k) {
        values[k] = x[k * count + lane];
      }
      const float gradient = scaling == Scaling::none ? g[lane] : scaled(uniforms.scale, g[lane]);
      e = Rule::update(e, gradient, uniforms.hypers, uniforms.scalars);
      for (int k = 0; k < fields; ++k) {
        x[k * count + lane] = values[k];
      }
    }
  }

  MLX_OPT_FN bool is_applied(float scale) {
    return scaling != Scaling::if_finite || is_finite(scale);
  }

  // Copies the operands to the results if the step is skipped.
  template <int count>
  MLX_OPT_FN void copy_through(Operands at, Places from, ulong to) {
    for (int lane = 0; lane < count; ++lane) {
      In::copy(Out{}, at.in, from.of, at.out, to + lane);
      for (int k = 0; k < fields; ++k) {
        ++from.of[k];
      }
    }
  }

  // Stores the results to the elements [to, to + count).
  template <int count>
  MLX_OPT_FN void elements(
      Operands at, Places from, ulong to, thread const float* g, Uniforms<Rule> uniforms) {
    if (!is_applied(uniforms.scale.factor)) {
      copy_through<count>(at, from, to);
      return;
    }
    float x[fields * count];
    In::template load<count>(at.in, from.of, x);
    apply<count>(x, g, uniforms);
    Rounding::template round<count>(Out{}, x, at.rounding_key, uniforms.step, to);
    Out::template store<count>(at.out, to, x);
  }

  // All operands are row-contiguous: a threadgroup processes a chunk of the tensor.
  MLX_OPT_FN void flat(
      Operands at,
      constant Tensor& tensor,
      constant float* group_uniforms,
      uint group,
      uint index) {
    at.rounding_key = tensor.rounding_key;
    Flat each = {at, uniforms_of<Rule>(group_uniforms, tensor.group)};
    const ulong begin = static_cast<ulong>(group - tensor.first_chunk) * chunk;
    over_chunk(each, begin, tensor.size, tensor.vectors, index);
  }

  // The gradient's columns are contiguous: tiles of it are read down the columns into `staged`, the
  // other operands along the rows.
  MLX_OPT_FN void transposed(
      Operands at,
      constant Matrix& matrix,
      constant float* group_uniforms,
      uint group,
      uint index,
      threadgroup float* staged) {
    at.rounding_key = matrix.rounding_key;
    TransposedElements each = {at, uniforms_of<Rule>(group_uniforms, matrix.group), matrix.columns};
    const Tile t = Tile::of(matrix.rows, matrix.columns, group);
    if (matrix.gradient_vectors) {
      stage<Gradient, vector_width>(at.gradient, matrix.rows, t, index, staged);
    } else {
      stage<Gradient, 1>(at.gradient, matrix.rows, t, index, staged);
    }
    wait_for_group();
    if (matrix.vectors) {
      over_tile<vector_width>(each, t, index, staged);
    } else {
      over_tile<1>(each, t, index, staged);
    }
  }

  // The operands have any layout. Index: the type of element indices.
  template <typename Index>
  MLX_OPT_FN void strided(
      Operands at,
      constant Strided<fields + 1>& tensor,
      constant float* group_uniforms,
      uint group,
      uint index) {
    at.rounding_key = tensor.rounding_key;
    const Uniforms<Rule> uniforms = uniforms_of<Rule>(group_uniforms, tensor.group);
    const ulong begin = static_cast<ulong>(group) * chunk;
    const uint count = at_most(tensor.size - begin, chunk);
    for (uint i = index; i < count; i += threads) {
      long places[fields + 1];
      locate(tensor.layout, static_cast<Index>(begin + i), places);
      Places from;
      for (int k = 0; k < fields; ++k) {
        from.of[k] = static_cast<ulong>(places[k]);
      }
      float g[1];
      Access<Gradient, 1>::load(at.gradient, static_cast<ulong>(places[fields]), g);
      elements<1>(at, from, begin + i, g, uniforms);
    }
  }

 private:
  struct Flat {
    Operands at;
    Uniforms<Rule> uniforms;

    template <int count>
    void elements(ulong i) {
      float g[count];
      Access<Gradient, count>::load(at.gradient, i, g);
      Update::elements<count>(at, everywhere(i), i, g, uniforms);
    }
  };

  struct TransposedElements {
    Operands at;
    Uniforms<Rule> uniforms;
    ulong columns;

    template <int count>
    void elements(ulong row, uint column, threadgroup const float* staged) {
      const ulong place = row * columns + column;
      float g[count];
      for (int lane = 0; lane < count; ++lane) {
        g[lane] = staged[lane];
      }
      Update::elements<count>(at, everywhere(place), place, g, uniforms);
    }
  };
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
