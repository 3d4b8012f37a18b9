// Limits how far the host runs ahead of the GPU.
#pragma once

#include <utility>

#include "mlx_opt/backend/gpu/per_stream.h"

namespace mlx_opt::gpu {

/// The last two steps of each stream. MLX holds the buffers of a queued step until it is done, and
/// a step whose buffers are held allocates new ones, so a loop that never waits would fill the
/// memory. Therefore a step waits for the last but one of its stream, which leaves the GPU one to
/// run. `Step`: what a backend waits for; Step{} means none.
template <typename Step>
class InFlight {
 public:
  Step last_but_one(mlx::core::Stream stream) {
    return steps_.with(stream, [](Steps& steps) { return steps.older; });
  }

  /// Adds a step of the stream. Calls `set` with the Step to overwrite: that of the oldest step,
  /// which is no longer waited for, or Step{}.
  template <typename Set>
  void note(mlx::core::Stream stream, Set&& set) {
    steps_.with(stream, [&](Steps& steps) {
      std::swap(steps.older, steps.newer);
      set(steps.newer);
    });
  }

 private:
  struct Steps {
    Step older{}, newer{};
  };

  PerStream<Steps> steps_;
};

} // namespace mlx_opt::gpu
