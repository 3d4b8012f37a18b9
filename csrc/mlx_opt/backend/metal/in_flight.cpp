#include "mlx_opt/backend/metal/in_flight.h"

#include <map>
#include <mutex>

namespace mlx_opt::metal {
namespace {

using Commands = NS::SharedPtr<MTL::CommandBuffer>;

// Of the last two steps of a stream, the older first.
struct Steps {
  Commands commands[2];
};

std::mutex mutex;

// Never destroyed: Metal may be gone before static destructors run.
Steps& steps_of(mlx::core::Stream stream) {
  static auto* steps = new std::map<int, Steps>;
  return (*steps)[stream.index];
}

} // namespace

void wait_for_last_but_one(mlx::core::Stream stream) {
  Commands oldest;
  {
    const std::lock_guard lock(mutex);
    oldest = steps_of(stream).commands[0];
  }
  // An evaluation that failed leaves commands behind that are never committed, or with a later one.
  if (oldest && oldest->status() >= MTL::CommandBufferStatusCommitted) {
    oldest->waitUntilCompleted();
  }
}

void note_step(mlx::core::Stream stream, MTL::CommandBuffer* commands) {
  const std::lock_guard lock(mutex);
  auto& [older, newer] = steps_of(stream).commands;
  older = std::move(newer);
  newer = NS::RetainPtr(commands);
}

} // namespace mlx_opt::metal
