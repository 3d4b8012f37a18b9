// The parameters of the kernel that computes the uniforms of a step. Compiled by the host's
// compiler and by NVRTC.
#pragma once

namespace mlx_opt {
namespace cuda {

// A hyperparameter. `traced`: its address, or null for a constant, whose values the other members
// have.
struct HyperSource {
  const float* traced;
  float value, one_minus, log;
};

// The step's number and the learning rate are null if the rule does not read them.
template <int count>
struct GroupTable {
  const unsigned long long* step;
  const float* learning_rate;
  double rate_scale; // a float
  HyperSource hypers[count];
};

// `scale`, `max_value`: of the gradients, or null. `group_uniforms`: the results, one set for each
// group.
template <int hypers, int capacity>
struct ScalarTable {
  const float* scale;
  const float* max_value;
  float* group_uniforms;
  GroupTable<hypers> groups[capacity];
};

} // namespace cuda
} // namespace mlx_opt
