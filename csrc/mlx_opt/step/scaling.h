// What the gradients are multiplied with, in float32, before the rule sees them. Plain data: the
// host's compiler and those of the GPUs' kernels read this one definition.
#pragma once

namespace mlx_opt {

enum class Scaling : unsigned char {
  none,
  always,    // the scale, a float32
  if_finite, // the same; where it is not finite the step is skipped, and all stays as it was
};

} // namespace mlx_opt
