// The kernels of an update, generic over the rule and the storage of each operand.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using cuda::chunk;
using cuda::threads;
using cuda::tile;

// In: formats of the parameter and its state; Out: of their new values.
template <typename Rule, typename In, typename Gradient, typename Out, Scaling scaling>
struct Update {
  using Element = typename Rule::Element;
  static constexpr int fields = sizeof(Element) / sizeof(float);
  using Tensor = cuda::Tensor<fields + 1, fields>;
  // As many elements as 16 bytes hold of the widest operand.
  static constexpr int lanes =
      In::all_halves && Out::all_halves && sizeof(typename Gradient::Stored) == 2 ? 8 : 4;

  template <int count>
  MLX_OPT_FN void apply(
      float (&x)[fields][count], const float (&g)[count], const Frame<Rule>& frame) {
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      float values[fields];
#pragma unroll
      for (int k = 0; k < fields; ++k) {
        values[k] = x[k][lane];
      }
      Element e;
      memcpy(&e, values, sizeof e);
      const float gradient = scaling == Scaling::none ? g[lane] : frame.scale * g[lane];
      e = Rule::update(e, gradient, frame.hypers, frame.scalars);
      memcpy(values, &e, sizeof e);
#pragma unroll
      for (int k = 0; k < fields; ++k) {
        x[k][lane] = values[k];
      }
    }
  }

  MLX_OPT_FN bool taken(const Frame<Rule>& frame) {
    return scaling != Scaling::if_finite || is_finite(frame.scale);
  }

  // What stands for the update where the step is not taken.
  template <int count>
  MLX_OPT_FN void keep(const Tensor& tensor, Index i) {
#pragma unroll 1
    for (int lane = 0; lane < count; ++lane) {
      Index at[fields];
#pragma unroll
      for (int k = 0; k < fields; ++k) {
        at[k] = i + lane;
      }
      In::template copy_all<Out>(tensor.in, at, tensor.out, i + lane);
    }
  }

  template <int count>
  MLX_OPT_FN void element(const Tensor& tensor, Index i, const Frame<Rule>& frame) {
    if (!taken(frame)) {
      keep<count>(tensor, i);
      return;
    }
    float x[fields][count];
    float g[count];
    In::load_all(tensor.in, i, x);
    load<Gradient>(tensor.in[fields], i, g);
    apply(x, g, frame);
    Out::store_all(tensor.out, i, x);
  }

  // All operands row-contiguous: a block takes a chunk.
  template <typename Table>
  MLX_OPT_FN void flat(const Table& table) {
    const Tensor& tensor = find<&Tensor::first_chunk>(table, blockIdx.x);
    const Frame<Rule> frame = frame_of<Rule>(table.frames, tensor.group);
    const Index begin = static_cast<Index>(blockIdx.x - tensor.first_chunk) * chunk;
    const Index left = size_of(tensor) - begin;
    const int count = left < chunk ? static_cast<int>(left) : chunk;
    int done = 0;
    if (In::template aligned<lanes>(tensor.in) && Out::template aligned<lanes>(tensor.out) &&
        List<Gradient>::template aligned<lanes>(tensor.in + fields)) {
      done = count / lanes * lanes;
      for (int i = threadIdx.x * lanes; i < done; i += threads * lanes) {
        element<lanes>(tensor, begin + i, frame);
      }
    }
    for (int i = done + threadIdx.x; i < count; i += threads) {
      element<1>(tensor, begin + i, frame);
    }
  }

  // A matrix whose gradient's columns are contiguous, by tiles: the gradient is read down its
  // columns into shared memory, the rest along the rows.
  template <typename Table>
  MLX_OPT_FN void transposed(const Table& table) {
    __shared__ float gradient[tile][tile + 1];
    const Tensor& tensor = find<&Tensor::first_chunk>(table, blockIdx.x);
    const Frame<Rule> frame = frame_of<Rule>(table.frames, tensor.group);
    const int columns = tensor.columns;
    const Index rows = size_of(tensor) / columns;
    const unsigned across = (columns + tile - 1) / tile;
    const unsigned index = blockIdx.x - tensor.first_chunk;
    const Index top = static_cast<Index>(index / across) * tile;
    const int left = static_cast<int>(index % across) * tile;
    const int height = rows - top < tile ? static_cast<int>(rows - top) : tile;
    const int width = columns - left < tile ? columns - left : tile;

    using Source = List<Gradient>;
    if (rows % lanes == 0 && Source::template aligned<lanes>(tensor.in + fields)) {
      transpose<lanes>(tensor.in[fields], rows, top, left, height, width, gradient);
    } else {
      transpose<1>(tensor.in[fields], rows, top, left, height, width, gradient);
    }
    __syncthreads();
    if (columns % lanes == 0 && In::template aligned<lanes>(tensor.in) &&
        Out::template aligned<lanes>(tensor.out)) {
      update_tile<lanes>(tensor, top, left, height, width, gradient, frame);
    } else {
      update_tile<1>(tensor, top, left, height, width, gradient, frame);
    }
  }

  template <int count>
  MLX_OPT_FN void transpose(
      const void* operand,
      Index rows,
      Index top,
      int left,
      int height,
      int width,
      float (&to)[tile][tile + 1]) {
    constexpr int steps = tile / count;
#pragma unroll 4
    for (int i = threadIdx.x; i < tile * steps; i += threads) {
      const int row = i % steps * count;
      const int column = i / steps;
      if (row < height && column < width) {
        float values[count];
        load<Gradient>(operand, (left + column) * rows + top + row, values);
#pragma unroll
        for (int lane = 0; lane < count; ++lane) {
          to[row + lane][column] = values[lane];
        }
      }
    }
  }

  template <int count>
  MLX_OPT_FN void update_tile(
      const Tensor& tensor,
      Index top,
      int left,
      int height,
      int width,
      const float (&gradient)[tile][tile + 1],
      const Frame<Rule>& frame) {
    constexpr int steps = tile / count;
    for (int i = threadIdx.x; i < tile * steps; i += threads) {
      const int row = i / steps;
      const int column = i % steps * count;
      if (row < height && column < width) {
        const Index at = (top + row) * tensor.columns + left + column;
        if (!taken(frame)) {
          keep<count>(tensor, at);
          continue;
        }
        float x[fields][count];
        float g[count];
        In::load_all(tensor.in, at, x);
#pragma unroll
        for (int lane = 0; lane < count; ++lane) {
          g[lane] = gradient[row][column + lane];
        }
        apply(x, g, frame);
        Out::store_all(tensor.out, at, x);
      }
    }
  }

  // Operands of any layout.
  MLX_OPT_FN void strided(const cuda::Strided<fields + 1, fields>& args) {
    const Frame<Rule> frame = frame_of<Rule>(args.frames, args.tensor.group);
    const Index begin = static_cast<Index>(blockIdx.x) * chunk;
    const Index left = size_of(args.tensor) - begin;
    const int count = left < chunk ? static_cast<int>(left) : chunk;
    for (int i = threadIdx.x; i < count; i += threads) {
      Index at[fields + 1];
      locate(args.layout, begin + i, at);
      if (!taken(frame)) {
        In::template copy_all<Out>(args.tensor.in, at, args.tensor.out, begin + i);
        continue;
      }
      float x[fields][1];
      float g[1];
      In::load_each(args.tensor.in, at, x);
      load<Gradient>(args.tensor.in[fields], at[fields], g);
      apply(x, g, frame);
      Out::store_all(args.tensor.out, begin + i, x);
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
