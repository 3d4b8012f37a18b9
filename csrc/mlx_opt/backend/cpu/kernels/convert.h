// Conversions between half-precision storage and float, for one instruction set. Included by
// operand.h only.
#pragma once

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "mlx_opt/rules/portable.h"

MLX_OPT_RULES_BEGIN

MLX_OPT_FN float float_of(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

MLX_OPT_FN uint32_t bits_of(float x) {
  return __builtin_bit_cast(uint32_t, x);
}

struct Float32 {
  using Stored = float;
  MLX_OPT_FN float widen(float x) {
    return x;
  }
  MLX_OPT_FN float narrow(float x) {
    return x;
  }
};

struct BFloat16 {
  using Stored = uint16_t;
  MLX_OPT_FN float widen(uint16_t x) {
    return float_of(uint32_t(x) << 16);
  }

  // Nearest, ties to even; a NaN stays one.
  MLX_OPT_FN uint16_t narrow(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
};

// Whole numbers from 0 to 65535.
struct Bits16 {
  using Stored = uint16_t;
  MLX_OPT_FN float widen(uint16_t x) {
    return float(x);
  }
  MLX_OPT_FN uint16_t narrow(float x) {
    return uint16_t(int32_t(x));
  }
};

#if defined(__aarch64__)

struct Float16 {
  using Stored = uint16_t;
  MLX_OPT_FN float widen(uint16_t x) {
    return float(__builtin_bit_cast(__fp16, x));
  }
  MLX_OPT_FN uint16_t narrow(float x) {
    return __builtin_bit_cast(uint16_t, __fp16(x));
  }
};

#elif defined(__F16C__)

struct Float16 {
  using Stored = uint16_t;
  MLX_OPT_FN float widen(uint16_t x) {
    return _cvtsh_ss(x);
  }
  MLX_OPT_FN uint16_t narrow(float x) {
    return _cvtss_sh(x, 0);
  }
};

#else

struct Float16 {
  using Stored = uint16_t;
  // A half's exponent moved into a float's bits is too small by 2^112. Multiplying by that also
  // handles denormals.
  MLX_OPT_FN float widen(uint16_t x) {
    const uint32_t magnitude = uint32_t(x & 0x7fff) << 13;
    const float finite = float_of(magnitude) * 0x1p112f;
    const float special = float_of(magnitude | 0x7f800000);
    const uint32_t bits = bits_of((x & 0x7c00) == 0x7c00 ? special : finite);
    return float_of(bits | (uint32_t(x & 0x8000) << 16));
  }

  // Nearest, ties to even. A result below half's normal range is rounded by adding 0.5, whose
  // unit in the last place is half's smallest denormal.
  MLX_OPT_FN uint16_t narrow(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23);
    const uint32_t normal = rounded >> 13;
    const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? denormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return uint16_t(sign | half);
  }
};

#endif

// Vectors by hand: the compiler's loops are half as fast.
#if defined(__AVX512BW__)

constexpr int lanes = 16;
using Floats = __m512;
using Halves = __m256i;

MLX_OPT_FN Floats load_floats(const float* from) {
  return _mm512_loadu_ps(from);
}

MLX_OPT_FN void store_floats(float* to, Floats x) {
  _mm512_storeu_ps(to, x);
}

MLX_OPT_FN Halves load_halves(const uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const Halves*>(from));
}

MLX_OPT_FN void store_halves(uint16_t* to, Halves x) {
  _mm256_storeu_si256(reinterpret_cast<Halves*>(to), x);
}

MLX_OPT_FN Floats widened(BFloat16, Halves x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

MLX_OPT_FN Floats widened(Float16, Halves x) {
  return _mm512_cvtph_ps(x);
}

MLX_OPT_FN Halves rounded_bfloat16(Floats x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i half_unit = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half_unit), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

MLX_OPT_FN Halves narrowed(BFloat16, Floats x) {
#if defined(__AVX512BF16__)
  // The instruction treats denormals as zero.
  constexpr int denormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(x, denormal) == 0, 1)) {
    const __m256bh y = _mm512_cvtneps_pbh(x);
    Halves result;
    __builtin_memcpy(&result, &y, sizeof result);
    return result;
  }
#endif
  return rounded_bfloat16(x);
}

MLX_OPT_FN Halves narrowed(Float16, Floats x) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

MLX_OPT_FN Floats widened(Bits16, Halves x) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(x));
}

MLX_OPT_FN Halves narrowed(Bits16, Floats x) {
  return _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(x));
}

#elif defined(__AVX2__)

constexpr int lanes = 8;
using Floats = __m256;
using Halves = __m128i;

MLX_OPT_FN Floats load_floats(const float* from) {
  return _mm256_loadu_ps(from);
}

MLX_OPT_FN void store_floats(float* to, Floats x) {
  _mm256_storeu_ps(to, x);
}

MLX_OPT_FN Halves load_halves(const uint16_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const Halves*>(from));
}

MLX_OPT_FN void store_halves(uint16_t* to, Halves x) {
  _mm_storeu_si128(reinterpret_cast<Halves*>(to), x);
}

MLX_OPT_FN Floats widened(BFloat16, Halves x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

MLX_OPT_FN Floats widened(Float16, Halves x) {
  return _mm256_cvtph_ps(x);
}

MLX_OPT_FN Halves narrowed(BFloat16, Floats x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i half_unit = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half_unit), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
}

MLX_OPT_FN Halves narrowed(Float16, Floats x) {
  return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

MLX_OPT_FN Floats widened(Bits16, Halves x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(x));
}

MLX_OPT_FN Halves narrowed(Bits16, Floats x) {
  const __m256i whole = _mm256_cvttps_epi32(x);
  return _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}

#else

constexpr int lanes = 1;

#endif

template <typename Format>
MLX_OPT_FN void widen_lanes(const typename Format::Stored* from, float* to) {
#if defined(__AVX2__)
  if constexpr (__is_same(Format, Float32)) {
    store_floats(to, load_floats(from));
  } else {
    store_floats(to, widened(Format{}, load_halves(from)));
  }
#else
  *to = Format::widen(*from);
#endif
}

template <typename Format>
MLX_OPT_FN void narrow_lanes(const float* from, typename Format::Stored* to) {
#if defined(__AVX2__)
  if constexpr (__is_same(Format, Float32)) {
    store_floats(to, load_floats(from));
  } else {
    store_halves(to, narrowed(Format{}, load_floats(from)));
  }
#else
  *to = Format::narrow(*from);
#endif
}

template <typename Half>
MLX_OPT_FN void widen(const uint16_t* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    widen_lanes<Half>(from + i, to + i);
  }
  for (; i < count; ++i) {
    to[i] = Half::widen(from[i]);
  }
}

template <typename Half>
MLX_OPT_FN void narrow(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    narrow_lanes<Half>(from + i, to + i);
  }
  for (; i < count; ++i) {
    to[i] = Half::narrow(from[i]);
  }
}

MLX_OPT_RULES_END
