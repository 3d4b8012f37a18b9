// The scalars of a group of tensors, which every threadgroup of an update reads.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

template <typename Rule>
struct Uniforms {
  typename Rule::Hypers hypers;
  typename Rule::Scalars scalars;
  Scale scale;
  float step; // its number, or 0 if the group does not read it

  enum : uint {
    hypers_count = sizeof(typename Rule::Hypers) / sizeof(Hyper),
    floats = 3 * hypers_count + sizeof(typename Rule::Scalars) / sizeof(float) + 3,
  };
};

// Reads a struct of floats from any address space.
template <typename T, typename Pointer>
MLX_OPT_FN T gathered(Pointer from) {
  T x;
  thread float* to = reinterpret_cast<thread float*>(&x);
  for (uint k = 0; k < sizeof(T) / sizeof(float); ++k) {
    to[k] = from[k];
  }
  return x;
}

template <typename Rule>
MLX_OPT_FN Uniforms<Rule> uniforms_of(constant float* group_uniforms, uint group) {
  return gathered<Uniforms<Rule>>(group_uniforms + group * Uniforms<Rule>::floats);
}

MLX_OPT_FN bool is_finite(float x) {
  return ::metal::fabs(x) <= 3.402823466e38f;
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
