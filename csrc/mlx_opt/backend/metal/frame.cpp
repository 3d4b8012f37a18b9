#include "mlx_opt/backend/metal/frame.h"

#include "mlx/allocator.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/rules/adafactor.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::metal {
namespace {

static_assert(max_hyperparameters >= max_hypers);
static_assert(
    max_hyperparameters * sizeof(MLX_OPT_LEVEL::Hyper) >= sizeof(MLX_OPT_LEVEL::Adafactor::Hypers));

constexpr int frame_floats = 3 * max_hyperparameters + max_scalars + 1;

} // namespace

mx::array encode_prepare(
    mx::metal::CommandEncoder& encoder,
    MTL::ComputePipelineState* prepare,
    const ScalarSources& sources,
    const std::vector<mx::array>& scalars) {
  mx::array frame(mx::allocator::malloc(frame_floats * sizeof(float)), {frame_floats}, mx::float32);
  Constants constants{};
  std::vector<const mx::array*> traced(sources.hypers.size(), &scalars[1]);
  for (size_t k = 0; k < sources.hypers.size(); ++k) {
    const auto hyper = derived(sources.hypers[k]);
    constants.hypers[k][0] = hyper.value;
    constants.hypers[k][1] = hyper.complement;
    constants.hypers[k][2] = hyper.log;
  }
  for (size_t i = 0; i < sources.traced.size(); ++i) {
    const int k = sources.traced[i];
    constants.traced |= 1u << k;
    traced[k] = &scalars[2 + i];
  }
  constants.scaled = sources.scaling != Scaling::none;
  encoder.set_compute_pipeline_state(prepare);
  encoder.set_output_array(frame, frame_slot);
  encoder.set_bytes(constants, arguments_slot);
  encoder.set_input_array(scalars[0], step_slot);
  encoder.set_input_array(scalars[1], learning_rate_slot);
  encoder.set_input_array(constants.scaled ? scalars.back() : scalars[1], scale_slot);
  for (size_t k = 0; k < traced.size(); ++k) {
    encoder.set_input_array(*traced[k], traced_slot + static_cast<int>(k));
  }
  encoder.dispatch_threadgroups(MTL::Size(1, 1, 1), MTL::Size(1, 1, 1));
  encoder.add_temporary(frame);
  return frame;
}

} // namespace mlx_opt::metal
