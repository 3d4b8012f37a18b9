#include "mlx_opt/backend/metal/step.h"

#include <algorithm>
#include <optional>

#include "mlx_opt/backend/metal/dispatch.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/backend/metal/uniforms.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::metal {
namespace {

// A dispatch with its compiled kernel.
struct Update {
  Dispatch dispatch;
  MTL::ComputePipelineState* pipeline = nullptr;
};

class MetalStep : public Prepared {
 public:
  MetalStep(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override;

 private:
  void find_updates();
  void encode(const Update& update, const mx::array& group_uniforms, const Buffers& outputs);

  mx::Stream stream_;
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
  std::vector<Leaf> leaves_;
  std::vector<Update> updates_;
  std::optional<GroupUniforms> group_uniforms_;
};

MetalStep::MetalStep(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      device_(mx::metal::device(stream.device)),
      encoder_(mx::metal::get_command_encoder(stream)),
      leaves_(leaves_of(spec, inputs, dtypes)) {
  if (!leaves_.empty()) {
    find_updates();
    const auto& rule = info(spec.rule);
    const UniformsShape shape{rule.name, rule.hypers + spec.has_ema, rule.scalars, spec.has_ema};
    group_uniforms_.emplace(shape, spec, inputs.data() + spec.operand_count(), device_);
  }
}

// Compiles the kernels, and throws the compiler's error.
void MetalStep::find_updates() {
  updates_.clear();
  const auto max_tensors = [](const Operands& operands) { return max_per_pack(operands); };
  for (Dispatch& dispatch : dispatches_over(leaves_, max_tensors)) {
    const auto same = std::find_if(updates_.begin(), updates_.end(), [&](const Update& update) {
      return update.dispatch.kernel == dispatch.kernel;
    });
    auto* pipeline =
        same != updates_.end() ? same->pipeline : metal::pipeline(dispatch.kernel, device_);
    updates_.push_back({std::move(dispatch), pipeline});
  }
}

void MetalStep::encode(
    const Update& update, const mx::array& group_uniforms, const Buffers& outputs) {
  const auto& [dispatch, pipeline] = update;
  encoder_.set_compute_pipeline_state(pipeline);
  encoder_.set_input_array(group_uniforms, uniforms_slot);
  const uint64_t groups = set_arguments(encoder_, dispatch);
  const auto places_of = [&](const Leaf& leaf) { return Places{leaf.in, leaf.out(outputs)}; };
  set_operands(encoder_, dispatch.kernel, dispatch, places_of, operands_slot);
  encoder_.dispatch_threadgroups(MTL::Size(groups, 1, 1), MTL::Size(threads, 1, 1));
}

void MetalStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) {
  if (leaves_.empty()) {
    return;
  }
  if (!place_all(leaves_, outputs)) {
    find_updates();
  }
  const mx::array group_uniforms = group_uniforms_->encode(encoder_);
  for (const Update& update : updates_) {
    encode(update, group_uniforms, outputs);
  }
  end_step(stream_, encoder_, std::move(keep_alive));
}

} // namespace

std::unique_ptr<Prepared> prepare_update(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<MetalStep>(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::metal
