// The kernel of the global norm: the square root of the total of the sums from squares.cu.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// Run by one block.
MLX_OPT_FN void norm(const cuda::Sums& sums) {
  double sum = 0.0;
  for (long long i = threadIdx.x; i < sums.count; i += cuda::norm_threads) {
    sum += sums.of_chunks[i];
  }
  const double total = sum_over_block<cuda::norm_threads>(sum);
  if (threadIdx.x == 0) {
    *sums.norm = static_cast<float>(sqrt(total));
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
