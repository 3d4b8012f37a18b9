// The stages around a rule that keep a parameter's weight in float32, for a block of elements. For
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

inline void join(float* __restrict weights, const float* __restrict remainders, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = joined(weights[i], remainders[i]);
  }
}

// The same for masters of any kind and layout. `parameter`: its storage.
inline void take_masters(
    MasterWeights masters,
    Storage parameter,
    const Operand& operand,
    int64_t begin,
    int64_t count,
    float* weights) {
  alignas(64) float staged[block];
  const float* values = load(operand, begin, count, staged);
  if (masters == MasterWeights::remainder) {
    join(weights, values, count);
  } else if (parameter == Storage::float16) {
    choose_weights<Float16>(weights, values, count);
  } else {
    choose_weights<BFloat16>(weights, values, count);
  }
}

// Stores the remainders of at most `block` weights, which are replaced by their parameters.
inline void put_remainders(
    const Operand& operand, int64_t begin, int64_t count, float* __restrict weights) {
  alignas(64) float remainders[block];
  for (int64_t i = 0; i < count; ++i) {
    const Split parts = split(weights[i]);
    weights[i] = parts.w;
    remainders[i] = parts.remainder;
  }
  store(operand, begin, count, remainders);
}

} // namespace
MLX_OPT_RULES_END
