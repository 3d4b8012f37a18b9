// Decodes and encodes blocks of codes. For one instruction set; included by operand.h only.
#pragma once

#include "mlx_opt/backend/cpu/kernels/convert.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"

MLX_OPT_RULES_BEGIN
namespace {

using cpu::Operand;
using cpu::Storage;

template <typename T>
T* at(const Operand& operand, int64_t index) {
  return static_cast<T*>(operand.data) + index;
}

template <typename Codes, typename Stored>
MLX_OPT_FN void encode_some(
    const float* from, float reciprocal, Stored* __restrict codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<Stored>(Codes::encode(from[i], reciprocal));
  }
}

#if defined(__AVX512BW__)

// Vectors by hand, as in convert.h: what rules/codes.h says, but for the sign of NaN's codes.

using Ints = __m512i;

MLX_OPT_FN Floats floats(Ints bits) {
  return _mm512_castsi512_ps(bits);
}

MLX_OPT_FN Ints bits(Floats x) {
  return _mm512_castps_si512(x);
}

MLX_OPT_FN Ints sizes(Floats x) {
  return _mm512_and_si512(bits(x), _mm512_set1_epi32(0x7fffffff));
}

// `size`, which is not negative, with the sign of `x`.
MLX_OPT_FN Floats with_sign(Floats size, Ints x) {
  constexpr int size_or_x_and_mask = 0xf8;
  const Ints mask = _mm512_set1_epi32(static_cast<int>(0x80000000));
  return floats(_mm512_ternarylogic_epi32(bits(size), x, mask, size_or_x_and_mask));
}

template <int shift>
MLX_OPT_FN Ints offset_of_roots() {
  constexpr int one = 0x3f800000;
  return _mm512_set1_epi32(one - (one >> shift));
}

template <int shift>
MLX_OPT_FN Floats parts_of_roots(Floats root) {
  const Ints difference = _mm512_sub_epi32(bits(root), offset_of_roots<shift>());
  return floats(_mm512_slli_epi32(_mm512_max_epi32(difference, _mm512_setzero_si512()), shift));
}

// The code before it is cut off.
template <int shift>
MLX_OPT_FN Floats unrounded(Floats x, Floats reciprocal, float most) {
  const Ints one = _mm512_set1_epi32(0x3f800000);
  const Ints size = _mm512_min_epi32(sizes(_mm512_mul_ps(x, reciprocal)), one);
  const Floats root =
      floats(_mm512_add_epi32(_mm512_srli_epi32(size, shift), offset_of_roots<shift>()));
  return _mm512_add_ps(_mm512_mul_ps(root, _mm512_set1_ps(most)), _mm512_set1_ps(0.5f));
}

MLX_OPT_FN Floats decoded(SignedCodes, const int8_t* codes, Floats scale) {
  const Ints code = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const Floats size = _mm512_cvtepi32_ps(_mm512_abs_epi32(code));
  const Floats part = parts_of_roots<1>(_mm512_mul_ps(size, _mm512_set1_ps(1.0f / 127)));
  return _mm512_mul_ps(with_sign(part, code), scale);
}

MLX_OPT_FN Floats decoded(UnsignedCodes, const uint8_t* codes, Floats scale) {
  const Ints code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const Floats root = _mm512_mul_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(1.0f / 255));
  return _mm512_mul_ps(parts_of_roots<2>(root), scale);
}

MLX_OPT_FN Ints encoded(SignedCodes, Floats x, Floats reciprocal) {
  return _mm512_cvttps_epi32(with_sign(unrounded<1>(x, reciprocal, 127.0f), bits(x)));
}

MLX_OPT_FN Ints encoded(UnsignedCodes, Floats x, Floats reciprocal) {
  const Ints least = _mm512_min_epi32(sizes(x), _mm512_set1_epi32(1));
  return _mm512_max_epi32(_mm512_cvttps_epi32(unrounded<2>(x, reciprocal, 255.0f)), least);
}

MLX_OPT_FN Ints packed(SignedCodes, Ints a, Ints b) {
  return _mm512_packs_epi16(a, b);
}

MLX_OPT_FN Ints packed(UnsignedCodes, Ints a, Ints b) {
  return _mm512_packus_epi16(a, b);
}

template <typename Codes, typename Stored>
MLX_OPT_FN void decode_block(const Stored* codes, float scale, float* to) {
  for (int i = 0; i < elements_of_block; i += lanes) {
    store_floats(to + i, decoded(Codes{}, codes + i, _mm512_set1_ps(scale)));
  }
}

template <typename Codes, typename Stored>
MLX_OPT_FN void encode_block(const float* from, float reciprocal, Stored* codes) {
  Ints each[elements_of_block / lanes];
  for (int i = 0; i < elements_of_block / lanes; ++i) {
    each[i] = encoded(Codes{}, load_floats(from + i * lanes), _mm512_set1_ps(reciprocal));
  }
  static_assert(elements_of_block / lanes == 4);
  const Ints first = _mm512_packs_epi32(each[0], each[1]);
  const Ints last = _mm512_packs_epi32(each[2], each[3]);
  // These instructions pack each quarter by itself.
  const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const Ints bytes = _mm512_permutexvar_epi32(order, packed(Codes{}, first, last));
  __builtin_memcpy(codes, &bytes, sizeof bytes);
}

// Stores the scale of a block from its largest sizes, and its reciprocal: as `scale_of_block` and
// `reciprocal_of`, without branches.
MLX_OPT_FN void measure(Ints sizes, float* scale, float* reciprocal) {
  const __m256i half =
      _mm256_max_epi32(_mm512_castsi512_si256(sizes), _mm512_extracti64x4_epi64(sizes, 1));
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1));
  const __mmask8 is_nan = _mm_cmpgt_epi32_mask(x, _mm_set1_epi32(0x7e7fffff));
  const __mmask8 is_some = _mm_cmpgt_epi32_mask(x, _mm_set1_epi32(0x007fffff));
  const __m128 some = _mm_castsi128_ps(_mm_maskz_mov_epi32(is_some, x));
  const __m128i nan = _mm_set1_epi32(0x7fc00000);
  *scale = _mm_cvtss_f32(_mm_castsi128_ps(_mm_mask_mov_epi32(_mm_castps_si128(some), is_nan, nan)));
  const __mmask8 is_finite = is_some & ~is_nan;
  *reciprocal = _mm_cvtss_f32(_mm_maskz_div_ps(is_finite, _mm_set1_ps(1.0f), some));
}

#else

template <typename Codes, typename Stored>
MLX_OPT_FN void decode_block(const Stored* codes, float scale, float* __restrict to) {
  for (int i = 0; i < elements_of_block; ++i) {
    to[i] = Codes::decode(codes[i], scale);
  }
}

template <typename Codes, typename Stored>
MLX_OPT_FN void encode_block(const float* from, float reciprocal, Stored* codes) {
  encode_some<Codes>(from, reciprocal, codes, elements_of_block);
}

#endif

MLX_OPT_FN int largest_size(const float* from, int64_t count) {
  int largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int bits = size_bits(from[i]);
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

template <typename Codes, typename Stored>
__attribute__((noinline)) void decode_blocks(
    const Operand& operand, int64_t begin, int64_t count, float* to) {
  const Stored* codes = at<const Stored>(operand, begin);
  const float* scale = operand.scales + begin / elements_of_block;
  for (; count >= elements_of_block; count -= elements_of_block) {
    decode_block<Codes>(codes, *scale++, to);
    codes += elements_of_block;
    to += elements_of_block;
  }
  for (int64_t i = 0; i < count; ++i) {
    to[i] = Codes::decode(codes[i], *scale);
  }
}

template <typename Codes, typename Stored>
__attribute__((noinline)) void encode_blocks(
    const Operand& operand, int64_t begin, int64_t count, const float* from) {
  Stored* codes = at<Stored>(operand, begin);
  float* scale = operand.scales + begin / elements_of_block;
  for (; count >= elements_of_block; count -= elements_of_block) {
    *scale = scale_of_block(largest_size(from, elements_of_block));
    const float reciprocal = reciprocal_of(*scale);
    if (*scale == *scale) {
      encode_block<Codes>(from, reciprocal, codes);
    } else {
      encode_some<Codes>(from, reciprocal, codes, elements_of_block);
    }
    ++scale;
    codes += elements_of_block;
    from += elements_of_block;
  }
  if (count > 0) {
    *scale = scale_of_block(largest_size(from, count));
    encode_some<Codes>(from, reciprocal_of(*scale), codes, count);
  }
}

inline void decode(const Operand& operand, int64_t begin, int64_t count, float* to) {
  operand.storage == Storage::int8
      ? decode_blocks<SignedCodes, int8_t>(operand, begin, count, to)
      : decode_blocks<UnsignedCodes, uint8_t>(operand, begin, count, to);
}

inline void encode(const Operand& operand, int64_t begin, int64_t count, const float* from) {
  operand.storage == Storage::int8
      ? encode_blocks<SignedCodes, int8_t>(operand, begin, count, from)
      : encode_blocks<UnsignedCodes, uint8_t>(operand, begin, count, from);
}

} // namespace
MLX_OPT_RULES_END
