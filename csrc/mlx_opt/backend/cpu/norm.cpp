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

class NormTask {
 public:
  explicit NormTask(const std::vector<mx::array>& arrays) : reductions_(reductions()) {
    num_threads(); // not in the task, because it may throw
    for (const mx::array& x : arrays) {
      operands_.push_back(owner_.in_any_order(x));
      extents_.push_back({static_cast<int64_t>(x.size())});
    }
  }

  float operator()() const {
    const Plan plan(extents_, chunk);
    std::vector<double> sums(plan.chunks());
    parallel_for(plan.chunks(), [&](int64_t index) {
      plan.visit(index, [&](int64_t tensor, int64_t begin, int64_t end) {
        sums[index] += reductions_.sum_of_squares(operands_[tensor], begin, end);
      });
    });
    return static_cast<float>(std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0)));
  }

 private:
  const Reductions& reductions_;
  Operands owner_;
  std::vector<Operand> operands_;
  std::vector<Plan::Extent> extents_;
};

} // namespace

float norm(const std::vector<mx::array>& arrays) {
  return NormTask(arrays)();
}

void enqueue_norm(mx::Stream stream, const std::vector<mx::array>& arrays, float* result) {
  mx::cpu::get_command_encoder(stream).dispatch(
      [task = NormTask(arrays), result] { *result = task(); });
}

} // namespace mlx_opt::cpu
