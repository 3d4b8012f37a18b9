// Reductions for one instruction set; compiled as elementwise.cpp is.
#include "mlx_opt/backend/cpu/kernels/operand.h"

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

// The same number of independent sums for all instruction sets, so that all give the same result.
// The square of a float is exact in double.
constexpr int sums = 16;

double sum_of_squares(const Operand& operand, int64_t begin, int64_t end) {
  alignas(64) float staged[block];
  alignas(64) double partial[sums] = {};
  for (; begin < end; begin += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    const float* x = load(operand, begin, count, staged);
    int64_t i = 0;
    for (; i + sums <= count; i += sums) {
      for (int k = 0; k < sums; ++k) {
        partial[k] += double(x[i + k]) * double(x[i + k]);
      }
    }
    for (int k = 0; i < count; ++i, ++k) {
      partial[k] += double(x[i]) * double(x[i]);
    }
  }
  double total = 0.0;
  for (double sum : partial) {
    total += sum;
  }
  return total;
}

} // namespace

extern const cpu::Reductions reductions;
const cpu::Reductions reductions = {sum_of_squares};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
