// The kernel of clipping: what the gradients are multiplied with.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// By one thread.
MLX_OPT_FN void clip(const cuda::Clip& from) {
  *from.scale = Clipping::scale(
      *from.norm,
      from.traced_max_norm ? *from.traced_max_norm : from.max_norm,
      from.skip_nonfinite);
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
