// How the gradients are scaled, in float32, before the rule sees them. Plain data: the host's
// compiler and those of the GPUs' kernels read this one definition.
#pragma once

namespace mlx_opt {

enum class Scaling : unsigned char {
  none,
  always,    // multiplied by the scale, a float32, and clipped to a maximum if there is one
  if_finite, // the same; the step is skipped if the scale is not finite
};

} // namespace mlx_opt
