#include "mlx_opt/eager/in_flight.h"

#include <algorithm>
#include <map>

namespace mlx_opt {
namespace {

std::mutex mutex;

// Never destroyed: a stream's thread may outlive static destructors.
std::map<int, std::shared_ptr<Queued>>& last_of_streams() {
  static auto* last = new std::map<int, std::shared_ptr<Queued>>;
  return *last;
}

} // namespace

void Queued::release() {
  // Not under the lock: what the deleter of a foreign buffer waits for may wait for the lock.
  read_.clear();
  // Under the lock: who finds nothing here counts the arrays' own holders only.
  const std::lock_guard lock(mutex_);
  overwritten_.clear();
}

void Queued::hand_over(Queued& next) {
  const std::scoped_lock lock(mutex_, next.mutex_);
  const size_t common = std::min(overwritten_.size(), next.overwritten_.size());
  for (size_t i = 0; i < common; ++i) {
    if (overwritten_[i] == next.overwritten_[i]) {
      overwritten_[i].reset();
    }
  }
}

bool Queued::is_pending() {
  const std::lock_guard lock(mutex_);
  return !overwritten_.empty();
}

Queued::Count::Count(Queued* queued) : queued_(queued) {
  if (queued_) {
    lock_ = std::unique_lock(queued_->mutex_);
  }
}

bool Queued::Count::is_free(const mx::array& x, size_t position) {
  const SharedData& data = x.data_shared_ptr();
  if (!queued_ || position >= queued_->overwritten_.size() ||
      queued_->overwritten_[position] != data) {
    return x.is_donatable();
  }
  // MLX counts for us, so the step lets go for as long.
  queued_->overwritten_[position].reset();
  const bool free = x.is_donatable();
  queued_->overwritten_[position] = data;
  return free;
}

std::shared_ptr<Queued> last_queued(mx::Stream stream) {
  const std::lock_guard lock(mutex);
  return last_of_streams()[stream.index];
}

void set_last_queued(mx::Stream stream, std::shared_ptr<Queued> queued) {
  const std::lock_guard lock(mutex);
  last_of_streams()[stream.index] = std::move(queued);
}

} // namespace mlx_opt
