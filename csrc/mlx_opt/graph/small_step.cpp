#include "mlx_opt/graph/small_step.h"

#include <algorithm>
#include <atomic>

#include "mlx_opt/types/arrays.h"

namespace mlx_opt {
namespace {

std::atomic<size_t> small_step_limit{default_small_step};

} // namespace

size_t small_step() {
  return small_step_limit.load(std::memory_order_relaxed);
}

void set_small_step(size_t elements) {
  small_step_limit.store(elements, std::memory_order_relaxed);
}

bool are_small(const std::vector<mx::array>& arrays, mx::Stream stream) {
  size_t elements = 0;
  for (const mx::array& x : arrays) {
    elements += x.size();
  }
  return stream.device == mx::Device::cpu && elements <= small_step() &&
         std::all_of(arrays.begin(), arrays.end(), is_evaluated);
}

} // namespace mlx_opt
