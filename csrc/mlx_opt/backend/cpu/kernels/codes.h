// Decodes and encodes blocks of codes. For one instruction set; included by operand.h only.
#pragma once

#include "mlx_opt/backend/cpu/kernels/kernel.h"

MLX_OPT_RULES_BEGIN
namespace {

using cpu::Operand;
using cpu::Storage;

template <typename T>
T* at(const Operand& operand, int64_t index) {
  return static_cast<T*>(operand.data) + index;
}

// Calls `visit(first, count, block)` for the parts of [0, count) that are in one block of codes,
// where element 0 is element `begin` of the tensor, the first of a block.
template <typename Visit>
MLX_OPT_FN void for_each_coded_block(int64_t begin, int64_t count, const Visit& visit) {
  constexpr int64_t size = elements_of_block;
  const int64_t block = begin / size;
  int64_t first = 0;
  for (; first + size <= count; first += size) {
    visit(first, size, block + first / size);
  }
  if (first < count) {
    visit(first, count - first, block + first / size);
  }
}

template <typename Codes, typename Stored>
__attribute__((noinline)) void decode_blocks(
    const Operand& operand, int64_t begin, int64_t count, float* __restrict to) {
  const Stored* codes = at<const Stored>(operand, begin);
  for_each_coded_block(begin, count, [&](int64_t first, int64_t size, int64_t block) {
    const float scale = operand.scales[block];
    for (int64_t i = first; i < first + size; ++i) {
      to[i] = Codes::decode(codes[i], scale);
    }
  });
}

template <typename Codes, typename Stored>
__attribute__((noinline)) void encode_blocks(
    const Operand& operand, int64_t begin, int64_t count, const float* __restrict from) {
  Stored* __restrict codes = at<Stored>(operand, begin);
  for_each_coded_block(begin, count, [&](int64_t first, int64_t size, int64_t block) {
    int largest = 0;
    for (int64_t i = first; i < first + size; ++i) {
      const int bits = size_bits(from[i]);
      largest = bits > largest ? bits : largest;
    }
    const float scale = scale_of_block(largest);
    const float reciprocal = reciprocal_of(scale);
    operand.scales[block] = scale;
    for (int64_t i = first; i < first + size; ++i) {
      codes[i] = static_cast<Stored>(Codes::encode(from[i], reciprocal));
    }
  });
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
