// The buffers that in-place steps hold until they are done.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {

namespace mx = mlx::core;

using SharedData = std::shared_ptr<Data>;

/// The buffers of a step in flight: those that it overwrites and those that it only reads. Each has
/// one holder more than its array. The stream's next step, which runs after this one, may still
/// overwrite the former.
class InFlightStep {
 public:
  InFlightStep(std::vector<SharedData> overwritten, std::vector<SharedData> read)
      : overwritten_(std::move(overwritten)), read_(std::move(read)) {}

  /// Releases the buffers. Called when the step is done.
  void release();

  /// Releases the buffers that `next` overwrites. `next` runs after this step and holds them from
  /// now on.
  void hand_over(InFlightStep& next);

  /// True if the step is not done yet.
  bool is_pending();

  /// Number of consecutive steps, up to this one, that found the GPU idle.
  int sync_streak = 0;

  /// A result that is left lazy, so that mx.eval waits only once. MLX holds the other results with
  /// it.
  std::optional<mx::array> lazy_result;

  /// Blocks release() while holders are counted.
  class Count {
   public:
    /// `step`: the last step of the stream, or null.
    explicit Count(InFlightStep* step);

    /// True if only the array and that step, as its buffer `position`, hold the buffer of `x`.
    bool is_free(const mx::array& x, size_t position);

   private:
    InFlightStep* step_;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  std::mutex mutex_;
  std::vector<SharedData> overwritten_;
  std::vector<SharedData> read_;
};

/// The last step of a stream, or null.
std::shared_ptr<InFlightStep> last_in_flight(mx::Stream stream);
void set_last_in_flight(mx::Stream stream, std::shared_ptr<InFlightStep> step);

} // namespace mlx_opt
