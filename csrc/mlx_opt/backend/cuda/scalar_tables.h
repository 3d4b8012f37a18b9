// What the kernel that computes the scalars of a step takes: the host's compiler and NVRTC both
// read this.
#pragma once

namespace mlx_opt {
namespace cuda {

// A hyperparameter: `traced` points to it, or is null and the rest is the constant's.
struct HyperSource {
  const float* traced;
  float value, one_minus, log;
};

// The step's number and the learning rate are null where the rule does not read them.
template <int count>
struct GroupTable {
  const unsigned long long* step;
  const float* learning_rate;
  HyperSource hypers[count];
};

// `scale`, where it is not null, is the gradients'. `group_uniforms`: of these groups.
template <int hypers, int capacity>
struct ScalarTable {
  const float* scale;
  float* group_uniforms;
  GroupTable<hypers> groups[capacity];
};

} // namespace cuda
} // namespace mlx_opt
