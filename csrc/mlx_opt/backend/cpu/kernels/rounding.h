// Stochastic rounding of vectors by hand: the compiler does not vectorise it beside a rule. For one
// instruction set.
#pragma once

#include "mlx_opt/backend/cpu/kernels/convert.h"
#include "mlx_opt/rules/rounding.h"

#if defined(__AVX512BW__)

MLX_OPT_RULES_BEGIN
namespace {

// As `rounded` of rules/rounding.h, of the elements from `first` on.
MLX_OPT_FN Halves rounded_lanes(Floats x, unsigned key, unsigned first) {
  const auto all = [](unsigned value) __attribute__((always_inline)) {
    return _mm512_set1_epi32(static_cast<int>(value));
  };
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i element = _mm512_add_epi32(all(first), lane);
  __m512i hash = _mm512_mullo_epi32(_mm512_xor_si512(element, all(key)), all(0x7feb352du));
  hash = _mm512_xor_si512(hash, _mm512_srli_epi32(hash, 15));
  hash = _mm512_mullo_epi32(hash, all(0x846ca68bu));
  const __m512i bits = _mm512_castps_si512(x);
  __m512i up = _mm512_add_epi32(bits, _mm512_srli_epi32(hash, 16));
  constexpr int nan = 0x81, nan_or_infinite = 0x99;
  const __mmask16 ends = _mm512_fpclass_ps_mask(_mm512_castsi512_ps(up), nan_or_infinite);
  up = _mm512_mask_mov_epi32(up, ends, bits);
  up = _mm512_mask_or_epi32(up, _mm512_fpclass_ps_mask(x, nan), bits, all(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
}

} // namespace
MLX_OPT_RULES_END

#endif
