// The kernel that computes the gradient scale.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// Run by one thread.
MLX_OPT_FN void clip(const cuda::Clip& from) {
  *from.scale = Clipping::scale(
      *from.norm,
      from.traced_max_norm ? *from.traced_max_norm : from.max_norm,
      from.skip_nonfinite);
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
