// The scalars of a group of tensors, which every block of an update reads.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

template <typename Rule>
struct Uniforms {
  typename Rule::Hypers hypers;
  typename Rule::Scalars scalars;
  Scale scale;
  float step; // its number, or 0 if the group does not read it
};

template <typename Rule>
MLX_OPT_FN const Uniforms<Rule>& uniforms_of(const float* group_uniforms, unsigned group) {
  return reinterpret_cast<const Uniforms<Rule>*>(group_uniforms)[group];
}

// A gradient as the rule sees it. A program defines MLX_OPT_CLIPS if elements are clipped, which
// takes a register more than some kernels have.
MLX_OPT_FN float taken(Scale scale, float gradient) {
#if defined(MLX_OPT_CLIPS)
  return scaled(scale, gradient);
#else
  return scale.factor * gradient;
#endif
}

// True if a step is applied that is to be skipped if the scale is not finite.
MLX_OPT_FN bool is_finite(Scale scale) {
  return fabsf(scale.factor) <= 3.402823466e38f;
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
