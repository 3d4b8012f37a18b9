// Sums over the threads of a block.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The sum of `x` over the threads of a block; thread 0 has it.
template <int count>
MLX_OPT_FN double sum_over_block(double x) {
  __shared__ double sums[count];
  sums[threadIdx.x] = x;
  for (int half = count / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
  }
  return sums[0];
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
