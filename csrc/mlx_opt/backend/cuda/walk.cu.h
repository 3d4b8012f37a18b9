// The walks of a pass over tensors, generic over what it does with an element.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using cuda::chunk;
using cuda::threads;
using cuda::tile;

// Rounds results to nearest, which storing them does. A rounding has the number of words behind the
// addresses of a tensor's results that it reads, and round(), which takes the tensor, the step's
// number, the index of the first result, how far apart the others are, and the results.
struct Nearest {
  static constexpr int words = 0;

  template <typename Out, typename Tensor, typename Results>
  MLX_OPT_FN void round(const Tensor&, float, Index, int, Results) {}
};

// What all passes share: the uniforms of the tensor's group.
template <typename Rule, Scaling scaling>
struct PassBase {
  using Rounding = Nearest;
  const Uniforms<Rule> uniforms;

  __device__ __forceinline__ PassBase(const float* group_uniforms, unsigned group)
      : uniforms(uniforms_of<Rule>(group_uniforms, group)) {}

  __device__ __forceinline__ bool is_applied() const {
    return scaling != Scaling::if_finite || is_finite(uniforms.scale);
  }

  __device__ __forceinline__ float scaled(float gradient) const {
    return scaling == Scaling::none ? gradient : taken(uniforms.scale, gradient);
  }
};

// The element of lane `lane`, whose fields are the first operands.
template <typename Element, int operands, int count>
MLX_OPT_FN Element take(const float (&x)[operands][count], int lane) {
  constexpr int fields = sizeof(Element) / sizeof(float);
  float values[fields];
#pragma unroll
  for (int k = 0; k < fields; ++k) {
    values[k] = x[k][lane];
  }
  Element e;
  memcpy(&e, values, sizeof e);
  return e;
}

template <typename Element, int operands, int count>
MLX_OPT_FN void put(const Element& e, int lane, float (&x)[operands][count]) {
  constexpr int fields = sizeof(Element) / sizeof(float);
  float values[fields];
  memcpy(values, &e, sizeof e);
#pragma unroll
  for (int k = 0; k < fields; ++k) {
    x[k][lane] = values[k];
  }
}

// A pass has
//   Tensor: a tensor as its kernels take it;
//   In, Out: the formats of its operands and of its results;
//   Kept, first: the formats of the operands that the results replace, the index of the first;
//   Rows, Gradient: if it reads a gradient, the formats of the operands before it, and its own;
//   block(): the launch's chunk that this block processes;
//   Pass(group_uniforms, tensor), is_applied(), apply(x): replaces the operands by the results;
//   end(tensor, index): called by all threads after the elements of a tensor's chunk `index`.
template <typename Pass>
struct Walks {
  using Tensor = typename Pass::Tensor;
  using In = typename Pass::In;
  using Out = typename Pass::Out;
  static constexpr int operands = In::count;
  static constexpr int first = Pass::first;
  // As many elements as fit into 16 bytes of the widest operand.
  static constexpr int vector_width = In::all_halves && Out::all_halves ? 8 : 4;

  // Copies the replaced operands to the results if the step is skipped.
  template <int count>
  MLX_OPT_FN void copy_through(const Tensor& tensor, Index i) {
    if constexpr (Out::count > 0) {
#pragma unroll 1
      for (int lane = 0; lane < count; ++lane) {
        Index at[Out::count];
#pragma unroll
        for (int k = 0; k < Out::count; ++k) {
          at[k] = i + lane;
        }
        Pass::Kept::template copy_all<Out>(tensor.in + first, at, tensor.out, i + lane);
      }
    }
  }

  // Computes the results from the operands `x`, and stores them to the elements [i, i + count).
  template <int count>
  MLX_OPT_FN void finish(const Tensor& tensor, Index i, float (&x)[operands][count], Pass& pass) {
    pass.apply(x);
    Pass::Rounding::template round<Out>(tensor, pass.uniforms.step, i, 1, x + first);
    Out::store_all(tensor.out, i, x + first);
  }

  template <int count>
  MLX_OPT_FN void element(const Tensor& tensor, Index i, Pass& pass) {
    if (!pass.is_applied()) {
      copy_through<count>(tensor, i);
      return;
    }
    float x[operands][count];
    In::load_all(tensor.in, i, x);
    finish(tensor, i, x, pass);
  }

  // All operands are row-contiguous: a block processes a chunk.
  template <typename Table>
  MLX_OPT_FN void flat(const Table& table) {
    const unsigned block = Pass::block();
    const Tensor& tensor = find<&Tensor::first_chunk>(table, block);
    Pass pass(table.group_uniforms, tensor);
    const Index begin = static_cast<Index>(block - tensor.first_chunk) * chunk;
    const Index remaining = size_of(tensor) - begin;
    const int count = remaining < chunk ? static_cast<int>(remaining) : chunk;
    int done = 0;
    if (In::template aligned<vector_width>(tensor.in) &&
        Out::template aligned<vector_width>(tensor.out)) {
      done = count / vector_width * vector_width;
      for (int i = threadIdx.x * vector_width; i < done; i += threads * vector_width) {
        element<vector_width>(tensor, begin + i, pass);
      }
    }
    for (int i = done + threadIdx.x; i < count; i += threads) {
      element<1>(tensor, begin + i, pass);
    }
    pass.end(tensor, block - tensor.first_chunk);
  }

  // The gradient's columns are contiguous: tiles of it are read down the columns into shared
  // memory, the other operands along the rows.
  template <typename Table>
  MLX_OPT_FN void transposed(const Table& table) {
    using Loads = PatchLoads<typename Pass::Gradient, vector_width, tile, tile>;
    __shared__ typename Loads::Memory patch;
    const Tensor& tensor = find<&Tensor::first_chunk>(table, blockIdx.x);
    Pass pass(table.group_uniforms, tensor);
    const int columns = tensor.columns;
    const Index rows = size_of(tensor) / columns;
    const unsigned across = (columns + tile - 1) / tile;
    const unsigned index = blockIdx.x - tensor.first_chunk;
    const Index top = static_cast<Index>(index / across) * tile;
    const int left = static_cast<int>(index % across) * tile;
    const int height = rows - top < tile ? static_cast<int>(rows - top) : tile;
    const int width = columns - left < tile ? columns - left : tile;

    using Source = List<typename Pass::Gradient>;
    const void* const* gradient = tensor.in + operands - 1;
    const bool vectors =
        rows % vector_width == 0 && Source::template aligned<vector_width>(gradient);
    Loads loads;
    loads.load(*gradient, left * rows + top, rows, height, width, vectors);
    loads.put(patch);
    __syncthreads();
    if (columns % vector_width == 0 && Pass::Rows::template aligned<vector_width>(tensor.in) &&
        Out::template aligned<vector_width>(tensor.out)) {
      take_tile<vector_width>(tensor, top, left, height, width, patch, pass);
    } else {
      take_tile<1>(tensor, top, left, height, width, patch, pass);
    }
    pass.end(tensor, index);
  }

  template <int count, typename Memory>
  MLX_OPT_FN void take_tile(
      const Tensor& tensor,
      Index top,
      int left,
      int height,
      int width,
      Memory& gradient,
      Pass& pass) {
    constexpr int steps = tile / count;
    for (int i = threadIdx.x; i < tile * steps; i += threads) {
      const int row = i / steps;
      const int column = i % steps * count;
      if (row < height && column < width) {
        const Index at = (top + row) * tensor.columns + left + column;
        if (!pass.is_applied()) {
          copy_through<count>(tensor, at);
          continue;
        }
        float x[operands][count];
        Pass::Rows::load_all(tensor.in, at, x);
        gradient.get(row, column, x[operands - 1]);
        finish(tensor, at, x, pass);
      }
    }
  }

  // The operands have any layout.
  template <int outputs>
  MLX_OPT_FN void strided(const cuda::Strided<operands, outputs>& args) {
    const Tensor& tensor = args.tensor;
    Pass pass(args.group_uniforms, tensor);
    const Index begin = static_cast<Index>(blockIdx.x) * chunk;
    const Index remaining = size_of(tensor) - begin;
    const int count = remaining < chunk ? static_cast<int>(remaining) : chunk;
    for (int i = threadIdx.x; i < count; i += threads) {
      Index at[operands];
      locate(args.layout, begin + i, at);
      if (!pass.is_applied()) {
        Pass::Kept::template copy_all<Out>(tensor.in + first, at + first, tensor.out, begin + i);
        continue;
      }
      float x[operands][1];
      In::load_each(tensor.in, at, x);
      finish(tensor, begin + i, x, pass);
    }
    pass.end(tensor, blockIdx.x);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
