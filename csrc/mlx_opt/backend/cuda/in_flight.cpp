#include "mlx_opt/backend/cuda/in_flight.h"

#include "mlx_opt/backend/cuda/cuda_errors.h"
#include "mlx_opt/backend/gpu/in_flight.h"

namespace mlx_opt::cuda {
namespace {

// Holds the event that follows each step.
gpu::InFlight<CUevent>& in_flight() {
  static auto* steps = new gpu::InFlight<CUevent>;
  return *steps;
}

} // namespace

void wait_for_last_but_one(mlx::core::Stream stream) {
  if (const CUevent done = in_flight().last_but_one(stream)) {
    check(cuEventSynchronize(done), "waiting for an earlier step");
  }
}

void note_step(mlx::core::Stream stream, mlx::core::cu::CommandEncoder& encoder) {
  in_flight().note(stream, [&](CUevent& done) {
    if (!done) {
      check(
          cuEventCreate(&done, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC),
          "creating an event");
    }
    check(cuEventRecord(done, encoder.stream()), "recording an event");
  });
}

} // namespace mlx_opt::cuda
