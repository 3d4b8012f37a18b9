// The average of the weights for one instruction set; compiled as elementwise.cpp is.
#include "mlx_opt/rules/ema.h"
#include "mlx_opt/backend/cpu/kernels/weights.h"

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

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
    update_block(before, load_weights(tensor, slots, begin, count, weights), after, count, rate);
    store(tensor.out[average], begin, count, after);
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
