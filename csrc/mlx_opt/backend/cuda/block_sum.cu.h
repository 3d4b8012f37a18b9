// Sums over the threads of a warp and of a block.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

constexpr int warp = 32;

// All lanes return the sum.
template <typename T>
MLX_OPT_FN T sum_over_warp(T x) {
#pragma unroll
  for (int half = warp / 2; half > 0; half /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, half);
  }
  return x;
}

// The sum of `x` over the threads of a block, returned by thread 0.
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

// Several sums, in place, with one barrier; thread 0 has the results. Call it once in a kernel.
template <int threads, int count>
MLX_OPT_FN void sums_over_block(double (&x)[count]) {
  constexpr int warps = threads / warp;
  __shared__ double of_warps[count][warps];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    x[k] = sum_over_warp(x[k]);
    if (threadIdx.x % warp == 0) {
      of_warps[k][threadIdx.x / warp] = x[k];
    }
  }
  __syncthreads();
  if (threadIdx.x < warp) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      x[k] = sum_over_warp(threadIdx.x < warps ? of_warps[k][threadIdx.x] : 0.0);
    }
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
