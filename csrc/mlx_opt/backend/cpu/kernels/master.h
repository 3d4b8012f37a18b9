// The stage around a rule that keeps a parameter's weight in float32, for a block of elements. For
// one instruction set.
#pragma once

#include "mlx_opt/backend/cpu/kernels/operand.h"
#include "mlx_opt/rules/master.h"

MLX_OPT_RULES_BEGIN
namespace {

// Replaces the values of at most `block` elements of a parameter by their weights.
template <typename Format>
void choose_weights(float* __restrict weights, const float* __restrict masters, int64_t count) {
  uint16_t narrowed[block];
  alignas(64) float rounded[block];
  narrow<Format>(masters, narrowed, count);
  widen<Format>(narrowed, rounded, count);
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = weight_of(weights[i], masters[i], rounded[i]);
  }
}

// The same for a master of any layout.
inline void take_masters(
    Storage parameter, const Operand& master, int64_t begin, int64_t count, float* weights) {
  alignas(64) float staged[block];
  const float* masters = load(master, begin, count, staged);
  if (parameter == Storage::float16) {
    choose_weights<Float16>(weights, masters, count);
  } else {
    choose_weights<BFloat16>(weights, masters, count);
  }
}

} // namespace
MLX_OPT_RULES_END
