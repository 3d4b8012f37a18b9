// Slots in codes of 8 bits: their storage, and what is done with a thread's values of a block; see
// rules/codes.h. NVRTC compiles this text after that and storage.cu.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The storages of codes. Among the floats of the other operands a code is the bits of an integer,
// which nothing has to convert. A word holds four codes, the first in the low bits.
struct Int8 {
  using Stored = unsigned char;
  using Codes = SignedCodes;
  static constexpr int id = 4;

  MLX_OPT_FN float widen(unsigned char code) {
    return __int_as_float(static_cast<signed char>(code));
  }
  MLX_OPT_FN unsigned char narrow(float code) {
    return static_cast<unsigned char>(__float_as_int(code));
  }
  MLX_OPT_FN void widen(unsigned word, float* to) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      to[k] = widen(static_cast<unsigned char>(word >> k * 8));
    }
  }
  MLX_OPT_FN unsigned narrow(const float* from) {
    unsigned word = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      word |= static_cast<unsigned>(narrow(from[k])) << k * 8;
    }
    return word;
  }
};

struct UInt8 {
  using Stored = unsigned char;
  using Codes = UnsignedCodes;
  static constexpr int id = 5;

  MLX_OPT_FN float widen(unsigned char code) {
    return __int_as_float(code);
  }
  MLX_OPT_FN unsigned char narrow(float code) {
    return Int8::narrow(code);
  }
  MLX_OPT_FN void widen(unsigned word, float* to) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      to[k] = widen(static_cast<unsigned char>(word >> k * 8));
    }
  }
  MLX_OPT_FN unsigned narrow(const float* from) {
    return Int8::narrow(from);
  }
};

template <typename Format>
constexpr bool has_codes = Format::id == Int8::id || Format::id == UInt8::id;

// What is done with `count` values of an operand, if these are codes. `scale` is then the scale of
// their block, and the next operand of codes has the one behind it.
template <typename Format, int count>
MLX_OPT_FN void decode(float (&x)[count], const float*& scale) {
  if constexpr (has_codes<Format>) {
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      x[lane] = Format::Codes::decode(__float_as_int(x[lane]), *scale);
    }
    ++scale;
  }
}

template <typename Format, int count>
MLX_OPT_FN void encode(float (&x)[count], const float*& scale) {
  if constexpr (has_codes<Format>) {
    const float reciprocal = reciprocal_of(*scale);
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      x[lane] = __int_as_float(Format::Codes::encode(x[lane], reciprocal));
    }
    ++scale;
  }
}

// The bits of the largest size of those values that a part of a block has.
template <typename Format, typename Part, int count>
MLX_OPT_FN void measure(const float (&x)[count], const Part& part, int*& largest) {
  if constexpr (has_codes<Format>) {
    *largest = 0;
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      const int bits = size_bits(x[lane]);
      *largest = part.has(lane) && bits > *largest ? bits : *largest;
    }
    ++largest;
  }
}

// The same for each operand of a list.
template <typename... Formats, int count>
MLX_OPT_FN void decode_all(List<Formats...>, float (*x)[count], const float* scales) {
  (decode<Formats>(*x++, scales), ...);
}

template <typename... Formats, int count>
MLX_OPT_FN void encode_all(List<Formats...>, float (*x)[count], const float* scales) {
  (encode<Formats>(*x++, scales), ...);
}

template <typename... Formats, typename Part, int count>
MLX_OPT_FN void measure_all(
    List<Formats...>, const float (*x)[count], const Part& part, int* largest) {
  (measure<Formats>(*x++, part, largest), ...);
}

// The largest of each group of `lanes` adjacent threads of a warp, all of which must come here.
template <int lanes>
MLX_OPT_FN int largest_of(int x) {
#pragma unroll
  for (int bits = lanes / 2; bits > 0; bits /= 2) {
    const int other = __shfl_xor_sync(0xffffffffu, x, bits);
    x = other > x ? other : x;
  }
  return x;
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
