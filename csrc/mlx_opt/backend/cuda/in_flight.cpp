#include "mlx_opt/backend/cuda/in_flight.h"

#include <map>
#include <mutex>

#include "mlx_opt/backend/cuda/driver.h"

namespace mlx_opt::cuda {
namespace {

// Of the last two steps of a stream, the older first.
struct Steps {
  CUevent done[2] = {};
};

std::mutex mutex;

Steps& steps_of(mlx::core::Stream stream) {
  static auto* steps = new std::map<int, Steps>;
  return (*steps)[stream.index];
}

} // namespace

void wait_for_last_but_one(mlx::core::Stream stream) {
  CUevent oldest;
  {
    const std::lock_guard lock(mutex);
    oldest = steps_of(stream).done[0];
  }
  if (oldest) {
    check(cuEventSynchronize(oldest), "waiting for an earlier step");
  }
}

void note_step(mlx::core::Stream stream, mlx::core::cu::CommandEncoder& encoder) {
  const std::lock_guard lock(mutex);
  auto& done = steps_of(stream).done;
  std::swap(done[0], done[1]);
  if (!done[1]) {
    check(
        cuEventCreate(&done[1], CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC),
        "creating an event");
  }
  check(cuEventRecord(done[1], encoder.stream()), "recording an event");
}

} // namespace mlx_opt::cuda
