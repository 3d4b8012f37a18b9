// The weights of a tensor's parameters, which its master weights are if it has some. For one
// instruction set.
#pragma once

#include "mlx_opt/backend/cpu/kernels/master.h"

MLX_OPT_RULES_BEGIN
namespace {

// The weights of at most `block` elements before the step, which has not run. `slots`: the number
// of the rule's.
inline const float* load_weights_before(
    const Tensor& tensor, int slots, int64_t begin, int64_t count, float* staged) {
  const float* parameters = load(tensor.in[0], begin, count, staged);
  if (tensor.masters == MasterWeights::none) {
    return parameters;
  }
  const Operand& master = tensor.in[slots + 2]; // behind the gradient
  take_masters(tensor.masters, tensor.in[0].storage, master, begin, count, staged);
  return staged;
}

// The weights of at most `block` elements after the step, which are in the results.
inline const float* load_weights(
    const Tensor& tensor, int slots, int64_t begin, int64_t count, float* staged) {
  const int master = slots + 1;
  if (tensor.masters == MasterWeights::float32) {
    return load(tensor.out[master], begin, count, staged);
  }
  const float* parameters = load(tensor.out[0], begin, count, staged);
  if (tensor.masters == MasterWeights::remainder) {
    alignas(64) float remainders[block];
    join(staged, load(tensor.out[master], begin, count, remainders), count);
  }
  return parameters;
}

} // namespace
MLX_OPT_RULES_END
