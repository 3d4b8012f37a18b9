#include "mlx_opt/backend/cpu/norm.h"

#include <cmath>
#include <numeric>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/step/plan.h"

namespace mlx_opt::cpu {
namespace {

// Number of elements that are summed as one chunk, independent of the number of threads.
constexpr int64_t chunk = 65536;

} // namespace

void enqueue_norm(mx::Stream stream, const std::vector<mx::array>& arrays, float* result) {
  num_threads(); // not in the task, because it may throw
  Operands owner;
  std::vector<Operand> operands;
  std::vector<Plan::Extent> extents;
  for (const mx::array& x : arrays) {
    operands.push_back(owner.in_any_order(x));
    extents.push_back({static_cast<int64_t>(x.size())});
  }
  mx::cpu::get_command_encoder(stream).dispatch([owner = std::move(owner),
                                                 operands = std::move(operands),
                                                 extents = std::move(extents),
                                                 &reductions = reductions(),
                                                 result] {
    const Plan plan(extents, chunk);
    std::vector<double> sums(plan.chunks());
    parallel_for(plan.chunks(), [&](int64_t index) {
      plan.visit(index, [&](int64_t tensor, int64_t begin, int64_t end) {
        sums[index] += reductions.sum_of_squares(operands[tensor], begin, end);
      });
    });
    *result = static_cast<float>(std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0)));
  });
}

} // namespace mlx_opt::cpu
