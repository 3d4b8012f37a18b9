#include "mlx_opt/backend/metal/backend.h"

#include "mlx_opt/backend/metal/adafactor.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/kernel_source.h"
#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/backend/metal/norm.h"
#include "mlx_opt/backend/metal/step.h"
#include "mlx_opt/backend/metal/two_pass.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::metal {
namespace {

class Backend : public gpu::Backend {
 public:
  std::unique_ptr<Prepared> prepare(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      LaunchMode) const override {
    if (has_two_passes(spec.rule)) {
      return prepare_two_passes(spec, inputs, dtypes, stream);
    }
    return is_elementwise(spec.rule) ? prepare_update(spec, inputs, dtypes, stream)
                                     : prepare_adafactor_step(spec, inputs, dtypes, stream);
  }

  Data allocate(size_t bytes, mx::Stream) const override {
    return new_data(bytes);
  }

  void wait_for_turn(mx::Stream stream) const override {
    wait_for_last_but_one(stream);
  }

  void norm(
      const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream) const override {
    enqueue_norm(arrays, output, stream);
  }

  void clip(
      const std::vector<mx::array>& inputs,
      float max_norm,
      bool skip_nonfinite,
      mx::array& scale,
      mx::Stream stream) const override {
    enqueue_clip(inputs, max_norm, skip_nonfinite, scale, stream);
  }

  std::string problem() const override {
    try {
      pipeline(PrepareKernel{"SGD", 4}, mx::metal::device(mx::Device::gpu));
      return "";
    } catch (const std::exception& error) {
      return error.what();
    }
  }
};

} // namespace

const gpu::Backend& backend() {
  static const Backend backend;
  return backend;
}

} // namespace mlx_opt::metal
