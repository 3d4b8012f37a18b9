// Reads and writes one element in the lanes of a vector, field by field: a memcpy of the element
// would prevent the vectorisation of some loops. For one instruction set.
#pragma once

#include "mlx_opt/backend/cpu/kernels/convert.h"

MLX_OPT_RULES_BEGIN
namespace {

template <typename Element, int count>
MLX_OPT_FN Element take(const float (&from)[count][lanes], int i) {
  constexpr int fields = sizeof(Element) / sizeof(float);
  static_assert(fields <= 5, "take and put know elements of up to five fields");
  static_assert(fields <= count);
  if constexpr (fields == 1) {
    return {from[0][i]};
  } else if constexpr (fields == 2) {
    return {from[0][i], from[1][i]};
  } else if constexpr (fields == 3) {
    return {from[0][i], from[1][i], from[2][i]};
  } else if constexpr (fields == 4) {
    return {from[0][i], from[1][i], from[2][i], from[3][i]};
  } else {
    return {from[0][i], from[1][i], from[2][i], from[3][i], from[4][i]};
  }
}

template <typename Element, int count>
MLX_OPT_FN void put(float (&to)[count][lanes], int i, const Element& e) {
  if constexpr (count == 1) {
    const auto [a] = e;
    to[0][i] = a;
  } else if constexpr (count == 2) {
    const auto [a, b] = e;
    to[0][i] = a, to[1][i] = b;
  } else if constexpr (count == 3) {
    const auto [a, b, c] = e;
    to[0][i] = a, to[1][i] = b, to[2][i] = c;
  } else if constexpr (count == 4) {
    const auto [a, b, c, d] = e;
    to[0][i] = a, to[1][i] = b, to[2][i] = c, to[3][i] = d;
  } else {
    const auto [a, b, c, d, f] = e;
    to[0][i] = a, to[1][i] = b, to[2][i] = c, to[3][i] = d, to[4][i] = f;
  }
}

} // namespace
MLX_OPT_RULES_END
