// Data that a backend keeps for each of MLX's streams.
#pragma once

#include <map>
#include <mutex>

#include "mlx/stream.h"

namespace mlx_opt::gpu {

/// A T for each stream. Create it with `new` and never destroy it: a stream's thread may outlive
/// static destructors, and the GPU's driver may be gone before they run.
template <typename T>
class PerStream {
 public:
  /// Calls `use` with the stream's T, with exclusive access.
  template <typename Use>
  auto with(mlx::core::Stream stream, Use&& use) {
    const std::lock_guard lock(mutex_);
    return use(values_[stream.index]);
  }

 private:
  std::mutex mutex_;
  std::map<int, T> values_;
};

} // namespace mlx_opt::gpu
