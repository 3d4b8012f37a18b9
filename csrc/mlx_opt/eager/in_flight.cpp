#include "mlx_opt/eager/in_flight.h"

#include <algorithm>
#include <map>

namespace mlx_opt {
namespace {

std::mutex mutex;

// Never destroyed: a stream's thread may outlive static destructors.
std::map<int, std::shared_ptr<InFlightStep>>& last_of_streams() {
  static auto* last = new std::map<int, std::shared_ptr<InFlightStep>>;
  return *last;
}

} // namespace

void InFlightStep::release() {
  // Outside the lock: the deleter of a foreign buffer may wait for something that waits for this
  // lock.
  read_.clear();
  // Under the lock, so that a reader who finds no buffers here counts only the arrays' own holders.
  const std::lock_guard lock(mutex_);
  overwritten_.clear();
}

void InFlightStep::hand_over(InFlightStep& next) {
  const std::scoped_lock lock(mutex_, next.mutex_);
  const size_t common = std::min(overwritten_.size(), next.overwritten_.size());
  for (size_t i = 0; i < common; ++i) {
    if (overwritten_[i] == next.overwritten_[i]) {
      overwritten_[i].reset();
    }
  }
}

bool InFlightStep::is_pending() {
  const std::lock_guard lock(mutex_);
  return !overwritten_.empty();
}

InFlightStep::Count::Count(InFlightStep* step) : step_(step) {
  if (step_) {
    lock_ = std::unique_lock(step_->mutex_);
  }
}

bool InFlightStep::Count::is_free(const mx::array& x, size_t position) {
  const SharedData& data = x.data_shared_ptr();
  if (!step_ || position >= step_->overwritten_.size() || step_->overwritten_[position] != data) {
    return x.is_donatable();
  }
  // MLX counts the holders, so the step gives up its own during the call.
  step_->overwritten_[position].reset();
  const bool free = x.is_donatable();
  step_->overwritten_[position] = data;
  return free;
}

std::shared_ptr<InFlightStep> last_in_flight(mx::Stream stream) {
  const std::lock_guard lock(mutex);
  return last_of_streams()[stream.index];
}

void set_last_in_flight(mx::Stream stream, std::shared_ptr<InFlightStep> step) {
  const std::lock_guard lock(mutex);
  last_of_streams()[stream.index] = std::move(step);
}

} // namespace mlx_opt
