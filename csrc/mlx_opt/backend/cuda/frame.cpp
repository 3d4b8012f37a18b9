#include "mlx_opt/backend/cuda/frame.h"

#include "mlx_opt/backend/cuda/memory.h"
#include "mlx_opt/backend/cuda/tables.h"
#include "mlx_opt/rules/adafactor.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::cuda {
namespace {

constexpr int bytes = (3 * max_hyperparameters + max_scalars + 1) * sizeof(float);

static_assert(max_hyperparameters >= max_hypers);
static_assert(
    max_hyperparameters * sizeof(MLX_OPT_LEVEL::Hyper) >= sizeof(MLX_OPT_LEVEL::Adafactor::Hypers));

} // namespace

mx::array new_frame(mx::Stream stream) {
  return mx::array(device_memory(bytes, stream), {bytes}, mx::uint8);
}

void launch_prepare(
    mx::cu::CommandEncoder& encoder,
    CUfunction prepare,
    const mlx_opt::ScalarSources& from,
    const mx::array* const* scalars,
    const mx::array& frame) {
  ScalarSources sources{};
  for (size_t k = 0; k < from.hypers.size(); ++k) {
    const auto hyper = derived(from.hypers[k]);
    sources.hypers[k][0] = hyper.value;
    sources.hypers[k][1] = hyper.complement;
    sources.hypers[k][2] = hyper.log;
  }
  sources.step = address<unsigned long long>(*scalars[0]);
  sources.learning_rate = address<float>(*scalars[1]);
  for (size_t i = 0; i < from.traced.size(); ++i) {
    sources.traced[from.traced[i]] = address<float>(*scalars[2 + i]);
  }
  size_t count = 2 + from.traced.size();
  if (from.scaling != mlx_opt::Scaling::none) {
    sources.scale = address<float>(*scalars[count++]);
  }
  sources.frame = address<float>(frame);
  for (size_t i = 0; i < count; ++i) {
    encoder.set_input_array(*scalars[i]);
  }
  encoder.set_output_array(frame);
  launch(encoder, prepare, 1, 1, &sources);
}

} // namespace mlx_opt::cuda
