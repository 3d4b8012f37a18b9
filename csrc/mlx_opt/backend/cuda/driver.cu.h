// The kernels, generic over the rule and the storage of each operand. NVRTC compiles this text at
// first use, behind the rules and tables.h; it includes nothing.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using cuda::chunk;
using cuda::ScalarSources;
using cuda::Strided;
using cuda::Tensor;
using cuda::threads;
using cuda::tile;

using Index = long long;

// How a number is stored. Words hold two halves, the first in the low bits.
struct Float32 {
  using Stored = float;
  static constexpr int id = 0;

  MLX_OPT_FN float widen(float x) {
    return x;
  }
  MLX_OPT_FN float narrow(float x) {
    return x;
  }
  MLX_OPT_FN void widen(unsigned word, float* to) {
    to[0] = __uint_as_float(word);
  }
  MLX_OPT_FN unsigned narrow(const float* from) {
    return __float_as_uint(from[0]);
  }
};

struct Float16 {
  using Stored = unsigned short;
  static constexpr int id = 1;

  MLX_OPT_FN float widen(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
  MLX_OPT_FN unsigned short narrow(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
  }
  MLX_OPT_FN void widen(unsigned word, float* to) {
    to[0] = widen(static_cast<unsigned short>(word));
    to[1] = widen(static_cast<unsigned short>(word >> 16));
  }
  MLX_OPT_FN unsigned narrow(const float* from) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
    return word;
#else
    return narrow(from[0]) | static_cast<unsigned>(narrow(from[1])) << 16;
#endif
  }
};

struct BFloat16 {
  using Stored = unsigned short;
  static constexpr int id = 2;

  MLX_OPT_FN float widen(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
  MLX_OPT_FN unsigned short narrow(float x) {
    const float pair[2] = {x, 0.0f};
    return static_cast<unsigned short>(narrow(pair));
  }
  MLX_OPT_FN void widen(unsigned word, float* to) {
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xffff0000u);
  }
  MLX_OPT_FN unsigned narrow(const float* from) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
    return word;
#else
    return rounded(from[0]) >> 16 | (rounded(from[1]) & 0xffff0000u);
#endif
  }

 private:
  // To nearest, ties to even, in the high half; a NaN stays one.
  MLX_OPT_FN unsigned rounded(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fc00000u : bits + 0x7fffu + (bits >> 16 & 1u);
  }
};

// Every byte is touched once, so none is worth a place in the caches.
template <int words>
MLX_OPT_FN void read(const void* from, unsigned* to) {
  if constexpr (words == 4) {
    const uint4 v = __ldcs(static_cast<const uint4*>(from));
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else {
    const uint2 v = __ldcs(static_cast<const uint2*>(from));
    to[0] = v.x, to[1] = v.y;
  }
}

template <int words>
MLX_OPT_FN void write(void* to, const unsigned* from) {
  if constexpr (words == 4) {
    __stcs(static_cast<uint4*>(to), make_uint4(from[0], from[1], from[2], from[3]));
  } else {
    __stcs(static_cast<uint2*>(to), make_uint2(from[0], from[1]));
  }
}

// Elements [i, i + lanes) of an operand as floats, and back.
template <typename Format, int lanes>
MLX_OPT_FN void load(const void* operand, Index i, float (&to)[lanes]) {
  const auto* from = static_cast<const typename Format::Stored*>(operand) + i;
  if constexpr (lanes == 1) {
    to[0] = Format::widen(*from);
  } else {
    constexpr int words = lanes * sizeof(typename Format::Stored) / 4;
    unsigned stored[words];
    read<words>(from, stored);
#pragma unroll
    for (int k = 0; k < words; ++k) {
      Format::widen(stored[k], to + k * (lanes / words));
    }
  }
}

template <typename Format, int lanes>
MLX_OPT_FN void store(void* operand, Index i, const float (&from)[lanes]) {
  auto* to = static_cast<typename Format::Stored*>(operand) + i;
  if constexpr (lanes == 1) {
    *to = Format::narrow(from[0]);
  } else {
    constexpr int words = lanes * sizeof(typename Format::Stored) / 4;
    unsigned stored[words];
#pragma unroll
    for (int k = 0; k < words; ++k) {
      stored[k] = Format::narrow(from + k * (lanes / words));
    }
    write<words>(to, stored);
  }
}

// One element, bit for bit where both are stored alike; nothing where it is the same.
template <typename From, typename To>
MLX_OPT_FN void copy(const void* operand, Index from, void* result, Index to) {
  if (operand == result) {
    return;
  }
  const auto* value = static_cast<const typename From::Stored*>(operand) + from;
  auto* copied = static_cast<typename To::Stored*>(result) + to;
  if constexpr (From::id == To::id) {
    *copied = *value;
  } else {
    *copied = To::narrow(From::widen(*value));
  }
}

// A list of formats, and what is done with each operand of such a list.
template <typename... Formats>
struct List {
  static constexpr bool all_halves = ((sizeof(typename Formats::Stored) == 2) && ...);

  template <int lanes>
  MLX_OPT_FN void load_all(const void* const* operands, Index i, float (*to)[lanes]) {
    (load<Formats>(*operands++, i, *to++), ...);
  }

  MLX_OPT_FN void load_each(const void* const* operands, const Index* at, float (*to)[1]) {
    (load<Formats>(*operands++, *at++, *to++), ...);
  }

  template <int lanes>
  MLX_OPT_FN void store_all(void* const* operands, Index i, const float (*from)[lanes]) {
    (store<Formats>(*operands++, i, *from++), ...);
  }

  // One element of each operand, to operands of the formats of `Out`.
  template <typename Out>
  MLX_OPT_FN void copy_all(
      const void* const* operands, const Index* from, void* const* results, Index to) {
    Out::copy_from(List{}, operands, from, results, to);
  }

  template <typename... From>
  MLX_OPT_FN void copy_from(
      List<From...>,
      const void* const* operands,
      const Index* from,
      void* const* results,
      Index to) {
    (copy<From, Formats>(*operands++, *from++, *results++, to), ...);
  }

  // Whether vectors of `lanes` elements can be read from all the operands.
  template <int lanes>
  MLX_OPT_FN bool aligned(const void* const* operands) {
    return (
        (reinterpret_cast<unsigned long long>(*operands++) %
             (lanes * sizeof(typename Formats::Stored)) ==
         0) &&
        ...);
  }
};

// What the gradients are multiplied with, as mlx_opt::Scaling has it.
enum class Scaling { none, always, if_finite };

template <typename Rule>
struct Frame {
  typename Rule::Hypers hypers;
  typename Rule::Scalars scalars;
  float scale;
};

// Once a step, by one thread.
template <typename Rule>
MLX_OPT_FN void prepare(const ScalarSources& sources) {
  constexpr int count = sizeof(typename Rule::Hypers) / sizeof(Hyper);
  Hyper hypers[count];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    const float* constant = sources.hypers[k];
    hypers[k] = {constant[0], constant[1], constant[2]};
    if (const float* traced = sources.traced[k]) {
      const double x = *traced;
      hypers[k] = {*traced, static_cast<float>(1.0 - x), static_cast<float>(log(x))};
    }
  }
  Frame<Rule> frame;
  memcpy(&frame.hypers, hypers, sizeof hypers);
  frame.scalars =
      Rule::prepare(frame.hypers, *sources.learning_rate, static_cast<float>(*sources.step));
  frame.scale = sources.scale ? *sources.scale : 1.0f;
  *reinterpret_cast<Frame<Rule>*>(sources.frame) = frame;
}

// In: formats of the parameter and its moments; Out: of their new values.
template <typename Rule, typename In, typename Gradient, typename Out, Scaling scaling>
struct Update {
  using Element = typename Rule::Element;
  static constexpr int fields = sizeof(Element) / sizeof(float);
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
    return scaling != Scaling::if_finite || fabsf(frame.scale) <= 3.402823466e38f;
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

  // The tensor that chunk `index` of a launch belongs to.
  template <typename Table>
  MLX_OPT_FN int find(const Table& table, unsigned index) {
    int low = 0;
    int high = static_cast<int>(table.count) - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (table.tensors[middle].first_chunk <= index) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
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
    const Frame<Rule> frame = *reinterpret_cast<const Frame<Rule>*>(table.frame);
    const int which = find(table, blockIdx.x);
    const Tensor& tensor = table.tensors[which];
    const Index begin = static_cast<Index>(blockIdx.x - tensor.first_chunk) * chunk;
    const Index left = tensor.size - begin;
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
    const Frame<Rule> frame = *reinterpret_cast<const Frame<Rule>*>(table.frame);
    const Tensor& tensor = table.tensors[find(table, blockIdx.x)];
    const int columns = tensor.columns;
    const Index rows = tensor.size / columns;
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
  MLX_OPT_FN void strided(const Strided& args) {
    const Frame<Rule> frame = *reinterpret_cast<const Frame<Rule>*>(args.frame);
    const cuda::Layout& layout = args.layout;
    const Index begin = static_cast<Index>(blockIdx.x) * chunk;
    const Index left = args.tensor.size - begin;
    const int count = left < chunk ? static_cast<int>(left) : chunk;
    for (int i = threadIdx.x; i < count; i += threads) {
      Index at[fields + 1] = {};
      Index rest = begin + i;
      for (int dim = layout.dims - 1; dim >= 0; --dim) {
        const Index position = rest % layout.shape[dim];
        rest /= layout.shape[dim];
#pragma unroll
        for (int k = 0; k <= fields; ++k) {
          at[k] += position * layout.strides[k][dim];
        }
      }
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
