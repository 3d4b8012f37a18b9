// What the steps that overwrite their operands have in their hands until they are done.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "mlx/array.h"

namespace mlx_opt {

namespace mx = mlx::core;

using SharedData = std::shared_ptr<mx::array::Data>;

/// The buffers of a queued step: those that it overwrites and those that it reads. It holds them
/// once more than their arrays do; the next step of the stream, which runs after it, may overwrite
/// the former again all the same.
class Queued {
 public:
  Queued(std::vector<SharedData> overwritten, std::vector<SharedData> read)
      : overwritten_(std::move(overwritten)), read_(std::move(read)) {}

  /// Lets go of the buffers, once the step is done.
  void release();

  /// Leaves what `next` overwrites to it, which runs after this.
  void hand_over(Queued& next);

  /// Whether the step is still to be done.
  bool is_pending();

  /// How many steps in a row, up to this, had found those before them done when they came.
  int waits = 0;

  /// What the caller has been left to evaluate, with which MLX holds the other results.
  std::optional<mx::array> left;

  /// Keeps release() away while holders are counted.
  class Count {
   public:
    /// `queued`: the last step of the stream, or null.
    explicit Count(Queued* queued);

    /// Whether nothing but the array and that step, as its buffer `position`, holds `x`.
    bool is_free(const mx::array& x, size_t position);

   private:
    Queued* queued_;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  std::mutex mutex_;
  std::vector<SharedData> overwritten_;
  std::vector<SharedData> read_;
};

/// The last step of a stream, or null.
std::shared_ptr<Queued> last_queued(mx::Stream stream);
void set_last_queued(mx::Stream stream, std::shared_ptr<Queued> queued);

} // namespace mlx_opt
