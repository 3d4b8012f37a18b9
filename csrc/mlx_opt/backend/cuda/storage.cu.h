// Storage formats: loads and stores of elements as floats. NVRTC compiles this text after the rules
// and tables.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using Index = long long;

// The storage formats. A word holds two halves, the first in the low bits.
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
  // Rounds to nearest, ties to even, into the high half; NaN stays NaN.
  MLX_OPT_FN unsigned rounded(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fc00000u : bits + 0x7fffu + (bits >> 16 & 1u);
  }
};

// Each byte is accessed once, so none should occupy the caches.
template <int words>
MLX_OPT_FN void read(const void* from, unsigned* to) {
  if constexpr (words == 4) {
    const uint4 v = __ldcs(static_cast<const uint4*>(from));
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else if constexpr (words == 2) {
    const uint2 v = __ldcs(static_cast<const uint2*>(from));
    to[0] = v.x, to[1] = v.y;
  } else {
    to[0] = __ldcs(static_cast<const unsigned*>(from));
  }
}

template <int words>
MLX_OPT_FN void write(void* to, const unsigned* from) {
  if constexpr (words == 4) {
    __stcs(static_cast<uint4*>(to), make_uint4(from[0], from[1], from[2], from[3]));
  } else if constexpr (words == 2) {
    __stcs(static_cast<uint2*>(to), make_uint2(from[0], from[1]));
  } else {
    __stcs(static_cast<unsigned*>(to), from[0]);
  }
}

MLX_OPT_FN unsigned word_of(unsigned char x) {
  return x;
}
MLX_OPT_FN unsigned word_of(unsigned short x) {
  return x;
}
MLX_OPT_FN unsigned word_of(float x) {
  return __float_as_uint(x);
}

// Elements in their stored form. Widening them waits for the load, so a load in a branch that also
// widens would be finished before the next loads are issued.
template <typename Format, int vector_width>
struct Raw {
  using Stored = typename Format::Stored;
  static constexpr int in_word = 4 / sizeof(Stored);
  static constexpr int words = (vector_width + in_word - 1) / in_word;

  unsigned stored[words] = {};

  // Loads the elements [i, i + vector_width) of an operand as whole words.
  __device__ __forceinline__ void load(const void* operand, Index i) {
    read<words>(static_cast<const Stored*>(operand) + i, stored);
  }

  // Loads element i into a lane that is still 0.
  __device__ __forceinline__ void load_lane(int lane, const void* operand, Index i) {
    const unsigned bits = word_of(static_cast<const Stored*>(operand)[i]);
    stored[lane / in_word] |= bits << lane % in_word * (32 / in_word);
  }

  __device__ __forceinline__ void widen(float (&to)[vector_width]) const {
    if constexpr (vector_width < in_word) {
      to[0] = Format::widen(static_cast<Stored>(stored[0]));
    } else {
#pragma unroll
      for (int k = 0; k < words; ++k) {
        Format::widen(stored[k], to + k * in_word);
      }
    }
  }
};

// Loads and stores the elements [i, i + vector_width) of an operand as floats.
template <typename Format, int vector_width>
MLX_OPT_FN void load(const void* operand, Index i, float (&to)[vector_width]) {
  Raw<Format, vector_width> raw;
  if constexpr (vector_width == 1) {
    raw.load_lane(0, operand, i);
  } else {
    raw.load(operand, i);
  }
  raw.widen(to);
}

template <typename Format, int vector_width>
MLX_OPT_FN void store(void* operand, Index i, const float (&from)[vector_width]) {
  auto* to = static_cast<typename Format::Stored*>(operand) + i;
  if constexpr (vector_width == 1) {
    *to = Format::narrow(from[0]);
  } else {
    constexpr int words = vector_width * sizeof(typename Format::Stored) / 4;
    unsigned stored[words];
#pragma unroll
    for (int k = 0; k < words; ++k) {
      stored[k] = Format::narrow(from + k * (vector_width / words));
    }
    write<words>(to, stored);
  }
}

// Copies one element, bit for bit if both storages are the same, and not at all if the address is
// the same.
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

// A list of formats, with operations on each operand of such a list.
template <typename... Formats>
struct List {
  static constexpr int count = sizeof...(Formats);
  static constexpr bool all_halves = ((sizeof(typename Formats::Stored) <= 2) && ...); // or less

  // The formats of this list followed by those of another.
  template <typename... More>
  MLX_OPT_FN List<Formats..., More...> joined(List<More...>) {
    return {};
  }
  template <typename Other>
  using Then = decltype(joined(Other{}));

  template <int vector_width>
  MLX_OPT_FN void load_all(const void* const* operands, Index i, float (*to)[vector_width]) {
    (load<Formats>(*operands++, i, *to++), ...);
  }

  MLX_OPT_FN void load_each(const void* const* operands, const Index* at, float (*to)[1]) {
    (load<Formats>(*operands++, *at++, *to++), ...);
  }

  template <int vector_width>
  MLX_OPT_FN void store_all(void* const* operands, Index i, const float (*from)[vector_width]) {
    (store<Formats>(*operands++, i, *from++), ...);
  }

  // Rounds one element of each operand as storing it does.
  template <int vector_width>
  MLX_OPT_FN void round_lane(float (*x)[vector_width], int lane) {
    (((*x)[lane] = Formats::widen(Formats::narrow((*x)[lane])), ++x), ...);
  }

  // Copies one element of each operand to operands of the formats of `Out`.
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

  // True if vectors of `vector_width` elements can be loaded from all operands.
  template <int vector_width>
  MLX_OPT_FN bool aligned(const void* const* operands) {
    return (
        (reinterpret_cast<unsigned long long>(*operands++) %
             (vector_width * sizeof(typename Formats::Stored)) ==
         0) &&
        ...);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
