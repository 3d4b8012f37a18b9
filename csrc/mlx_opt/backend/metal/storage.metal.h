// Storage formats, and the kernels' loads and stores.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The storage formats. bfloat16 is converted by its bits, so that all compilers agree.
struct Float32 {
  using Stored = float;
  using Vector = float4;

  MLX_OPT_FN float widen(float x) {
    return x;
  }
  MLX_OPT_FN float narrow(float x) {
    return x;
  }
};

struct Float16 {
  using Stored = half;
  using Vector = half4;

  MLX_OPT_FN float widen(half x) {
    return static_cast<float>(x);
  }
  MLX_OPT_FN half narrow(float x) {
    return static_cast<half>(x);
  }
};

struct BFloat16 {
  using Stored = ushort;
  using Vector = ushort4;

  MLX_OPT_FN float widen(ushort bits) {
    return as_type<float>(static_cast<uint>(bits) << 16);
  }
  // Rounds to nearest, ties to even; NaN stays NaN.
  MLX_OPT_FN ushort narrow(float x) {
    const uint bits = as_type<uint>(x);
    const uint rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return static_cast<ushort>((x != x ? 0x7fc00000u : rounded) >> 16);
  }
};

// Loads and stores the elements [i, i + count) of an operand as floats.
template <typename Format, int count>
struct Access {
  using Stored = typename Format::Stored;
  using Vector = typename Format::Vector;

  MLX_OPT_FN void load(device const uchar* operand, ulong i, thread float* to) {
    const Vector stored = *reinterpret_cast<device const Vector*>(operand + i * sizeof(Stored));
    for (int lane = 0; lane < count; ++lane) {
      to[lane] = Format::widen(stored[lane]);
    }
  }
  MLX_OPT_FN void store(device uchar* operand, ulong i, thread const float* from) {
    Vector stored;
    for (int lane = 0; lane < count; ++lane) {
      stored[lane] = Format::narrow(from[lane]);
    }
    *reinterpret_cast<device Vector*>(operand + i * sizeof(Stored)) = stored;
  }
};

template <typename Format>
struct Access<Format, 1> {
  using Stored = typename Format::Stored;

  MLX_OPT_FN void load(device const uchar* operand, ulong i, thread float* to) {
    *to = Format::widen(*reinterpret_cast<device const Stored*>(operand + i * sizeof(Stored)));
  }
  MLX_OPT_FN void store(device uchar* operand, ulong i, thread const float* from) {
    *reinterpret_cast<device Stored*>(operand + i * sizeof(Stored)) = Format::narrow(*from);
  }
};

// Copies one element, bit for bit if both storages are the same.
template <typename From, typename To>
struct Copy {
  MLX_OPT_FN void run(device const uchar* operand, ulong from, device uchar* result, ulong to) {
    float x;
    Access<From, 1>::load(operand, from, &x);
    Access<To, 1>::store(result, to, &x);
  }
};

template <typename Format>
struct Copy<Format, Format> {
  MLX_OPT_FN void run(device const uchar* operand, ulong from, device uchar* result, ulong to) {
    using Stored = typename Format::Stored;
    reinterpret_cast<device Stored*>(result)[to] =
        reinterpret_cast<device const Stored*>(operand)[from];
  }
};

// The formats of the parameter and its slots, with operations on each operand of such a list. `at`:
// an element's index in each.
template <typename... Formats>
struct List {
  enum : int { size = sizeof...(Formats) };

  template <int count>
  MLX_OPT_FN void load(
      const device uchar* const thread* operands, thread const ulong* at, thread float* to) {
    int k = 0;
    const int done[] = {(Access<Formats, count>::load(operands[k], at[k], to + k * count), ++k)...};
    static_cast<void>(done);
  }

  template <int count>
  MLX_OPT_FN void store(device uchar* const thread* operands, ulong i, thread const float* from) {
    int k = 0;
    const int done[] = {(Access<Formats, count>::store(operands[k], i, from + k * count), ++k)...};
    static_cast<void>(done);
  }

  template <typename... Out>
  MLX_OPT_FN void copy(
      List<Out...>,
      const device uchar* const thread* operands,
      thread const ulong* at,
      device uchar* const thread* results,
      ulong i) {
    int k = 0;
    const int done[] = {(Copy<Formats, Out>::run(operands[k], at[k], results[k], i), ++k)...};
    static_cast<void>(done);
  }
};

template <>
struct List<> {
  enum : int { size = 0 };

  template <int count>
  MLX_OPT_FN void store(device uchar* const thread*, ulong, thread const float*) {}

  MLX_OPT_FN void copy(
      List,
      const device uchar* const thread*,
      thread const ulong*,
      device uchar* const thread*,
      ulong) {}
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
