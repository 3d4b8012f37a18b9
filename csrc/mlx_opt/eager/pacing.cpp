#include "mlx_opt/eager/pacing.h"

#include "mlx/transforms.h"
#include "mlx_opt/backend/find.h"

namespace mlx_opt {
namespace {

// On a GPU, operands of this many bytes take longer to update than MLX takes to walk over them.
constexpr size_t large_operand = 1 << 20;

// A caller is assumed to wait for each step after this many consecutive steps found the GPU idle.
constexpr int sync_streak_to_trust = 3;

// How far below 0 the streak restarts after that assumption proved wrong.
constexpr int sync_penalty = 64;

} // namespace

void throttle(mx::Stream stream) {
  if (stream.device == mx::Device::gpu) {
    if (const auto* backend = gpu::find_backend().backend) {
      backend->wait_for_turn(stream);
    }
    return;
  }
  const auto last = last_in_flight(stream);
  if (last && last->is_pending()) {
    mx::synchronize(stream);
  }
}

bool release_lazy_result(mx::Stream stream) {
  const auto last = last_in_flight(stream);
  if (!last || !last->lazy_result) {
    return false;
  }
  last->lazy_result.reset();
  mx::synchronize(stream);
  return true;
}

bool outlasts_the_host(const Accesses& accesses, mx::Stream stream) {
  if (stream.device != mx::Device::gpu) {
    return false;
  }
  size_t bytes = 0;
  for (const ArrayRefs* arrays : {&accesses.overwritten, &accesses.read}) {
    for (const mx::array* x : *arrays) {
      bytes += x->nbytes();
    }
  }
  return bytes / (accesses.overwritten.size() + accesses.read.size()) >= large_operand;
}

void continue_streak(const InFlightStep* last, InFlightStep& next, bool idle) {
  if (last && idle && gpu::find_backend().backend->has_costly_events()) {
    next.sync_streak = last->sync_streak + 1;
  }
}

// A lazy result with an event was not waited for: only async_eval attaches an event to it.
void lower_streak(InFlightStep& last, const mx::array& parameter) {
  if (last.lazy_result && last.lazy_result->event().valid()) {
    last.sync_streak = -sync_penalty;
  } else if (!parameter.is_available()) {
    last.sync_streak = 0;
  }
}

bool is_waited_for(const InFlightStep& step) {
  return step.sync_streak >= sync_streak_to_trust;
}

} // namespace mlx_opt
