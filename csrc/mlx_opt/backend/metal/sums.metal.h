// Sums over a threadgroup and over many parts, in a fixed order.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// A sum with compensation for rounding, because there may be millions of parts: Neumaier 1974.
struct LongSum {
  float rounded, lost;
};

MLX_OPT_FN LongSum plus(LongSum sum, float x) {
  const float next = sum.rounded + x;
  const float lost = sum.rounded >= x ? (sum.rounded - next) + x : (x - next) + sum.rounded;
  return {next, sum.lost + lost};
}

MLX_OPT_FN float value_of(LongSum sum) {
  return is_finite(sum.rounded) ? sum.rounded + sum.lost : sum.rounded;
}

// The sum of all threads' numbers, returned by every thread.
MLX_OPT_FN float sum_over_group(float x, uint index, threadgroup float* staged) {
  wait_for_group();
  staged[index] = x;
  for (uint apart = threads / 2; apart > 0; apart /= 2) {
    wait_for_group();
    if (index < apart) {
      staged[index] += staged[index + apart];
    }
  }
  wait_for_group();
  return staged[0];
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
