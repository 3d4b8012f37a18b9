// The average of the weights for one instruction set; compiled as elementwise.cpp is.
#include "mlx_opt/rules/ema.h"
#include "mlx_opt/backend/cpu/kernels/master.h"

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

// The weights of at most `block` elements after the step, which are in the results.
const float* load_weights(
    const Tensor& tensor, int master, int64_t begin, int64_t count, float* staged) {
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

void update_block(
    const float* averages, const float* weights, float* to, int64_t count, float rate) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = averaged(averages[i], weights[i], rate);
  }
}

} // namespace

extern cpu::UpdateEma update_ema;
void update_ema(const Tensor& tensor, int slots, int64_t begin, int64_t end, float rate) {
  const int master = slots + 1;
  const int average = master + (tensor.masters != MasterWeights::none);
  for (; begin < end; begin += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    alignas(64) float staged[block], weights[block];
    const float* before = load(tensor.in[average + 1], begin, count, staged);
    float* after = place(tensor.out[average], begin, staged);
    update_block(before, load_weights(tensor, master, begin, count, weights), after, count, rate);
    store(tensor.out[average], begin, count, after);
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
