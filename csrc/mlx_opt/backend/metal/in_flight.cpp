#include "mlx_opt/backend/metal/in_flight.h"

#include "mlx_opt/backend/gpu/in_flight.h"

namespace mlx_opt::metal {
namespace {

using Commands = NS::SharedPtr<MTL::CommandBuffer>;

// Holds the command buffer of each step.
gpu::InFlight<Commands>& in_flight() {
  static auto* steps = new gpu::InFlight<Commands>;
  return *steps;
}

} // namespace

void wait_for_last_but_one(mlx::core::Stream stream) {
  const Commands commands = in_flight().last_but_one(stream);
  // A failed evaluation leaves commands that are never committed, or only with a later one.
  if (commands && commands->status() >= MTL::CommandBufferStatusCommitted) {
    commands->waitUntilCompleted();
  }
}

void note_step(mlx::core::Stream stream, MTL::CommandBuffer* commands) {
  in_flight().note(stream, [&](Commands& step) { step = NS::RetainPtr(commands); });
}

} // namespace mlx_opt::metal
