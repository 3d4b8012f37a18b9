#include "mlx_opt/backend/metal/in_flight.h"

#include <utility>

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

void end_step(
    mlx::core::Stream stream,
    mlx::core::metal::CommandEncoder& encoder,
    std::shared_ptr<void> keep_alive) {
  auto* commands = encoder.get_command_buffer();
  commands->addCompletedHandler([keep_alive = std::move(keep_alive)](MTL::CommandBuffer*) {});
  in_flight().note(stream, [&](Commands& step) { step = NS::RetainPtr(commands); });
}

} // namespace mlx_opt::metal
