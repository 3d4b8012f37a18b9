#include "mlx_opt/backend/metal/adafactor.h"

#include <algorithm>
#include <optional>

#include "mlx_opt/backend/metal/adafactor_tensor.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/backend/metal/uniforms.h"
#include "mlx_opt/rules/adafactor.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::metal {
namespace {

constexpr UniformsShape uniforms_shape = {
    "Adafactor",
    sizeof(MLX_OPT_LEVEL::Adafactor::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper),
    sizeof(MLX_OPT_LEVEL::Adafactor::Scalars) / sizeof(float)};

class AdafactorStep : public Prepared {
 public:
  AdafactorStep(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override;

 private:
  bool find_pipelines();
  void encode(
      const AdafactorPlan& tensor,
      const AdafactorPass& pass,
      const mx::array& group_uniforms,
      mx::array& scratch,
      const Buffers& outputs);

  mx::Stream stream_;
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
  std::vector<AdafactorPlan> tensors_;
  std::optional<GroupUniforms> group_uniforms_;
};

AdafactorStep::AdafactorStep(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      device_(mx::metal::device(stream.device)),
      encoder_(mx::metal::get_command_encoder(stream)) {
  const mx::array* const* operands = inputs.data();
  size_t position = 0, tensor = 0;
  const bool first_moment = spec.runs.at(0).operands == 4;
  for (size_t kind = 0; kind < spec.runs.size(); ++kind) {
    const bool factored = kind == 1;
    const auto [tensors, width, masters, scales] = spec.runs[kind];
    for (const size_t end = tensor + tensors; tensor < end; ++tensor) {
      // A matrix without elements may still have means, which must be copied.
      if (operands[0]->size() || factored) {
        tensors_.emplace_back(
            AdafactorFields{factored, first_moment},
            operands,
            &dtypes[position],
            position,
            spec.scaling == Scaling::if_finite,
            spec.group_of(tensor));
      }
      operands += width;
      position += width - 1;
    }
  }
  if (find_pipelines()) {
    group_uniforms_.emplace(uniforms_shape, spec, operands, device_);
  }
}

// Compiles the kernels, and throws the compiler's error while the operands are still unchanged.
// Returns false if there is nothing to do.
bool AdafactorStep::find_pipelines() {
  std::vector<const AdafactorPass*> found;
  for (AdafactorPlan& tensor : tensors_) {
    for (AdafactorPass& pass : tensor.passes) {
      if (pass.groups == 0) {
        continue;
      }
      const auto same = std::find_if(
          found.begin(), found.end(), [&](auto* other) { return other->kernel == pass.kernel; });
      if (same != found.end()) {
        pass.pipeline = (*same)->pipeline;
      } else {
        pass.pipeline = pipeline(pass.kernel, device_);
        found.push_back(&pass);
      }
    }
  }
  return !found.empty();
}

void AdafactorStep::encode(
    const AdafactorPlan& tensor,
    const AdafactorPass& pass,
    const mx::array& group_uniforms,
    mx::array& scratch,
    const Buffers& outputs) {
  encoder_.set_compute_pipeline_state(pass.pipeline);
  encoder_.set_input_array(group_uniforms, uniforms_slot);
  if (pass.kernel.strided) {
    encoder_.set_bytes(tensor.arguments, arguments_slot);
  } else {
    encoder_.set_bytes(AdafactorArguments{tensor.arguments.tensor}, arguments_slot);
  }
  encoder_.set_output_array(scratch, scratch_slot);
  int slot = scratch_slot + 1;
  for (AdafactorOperand operand : pass.in) {
    const Place& place = tensor.in[tensor.fields.place_of(operand)];
    // An array without elements may have no buffer.
    encoder_.set_input_array(place.data_size ? place.array() : scratch, slot++);
  }
  for (AdafactorOperand operand : pass.out) {
    const int k = tensor.fields.place_of(operand);
    const size_t size = tensor.in[k].data_size;
    mx::array out = size ? Place(outputs[tensor.first_output + k], size).array() : scratch;
    encoder_.set_output_array(out, slot++);
  }
  encoder_.dispatch_threadgroups(MTL::Size(pass.groups, 1, 1), MTL::Size(threads, 1, 1));
}

// Encodes pass after pass over all tensors, so that MLX inserts one barrier for each pass: each
// tensor has its own scratch memory, and different tensors overlap.
void AdafactorStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) {
  if (!group_uniforms_) {
    return;
  }
  const mx::array group_uniforms = group_uniforms_->encode(encoder_);
  std::vector<mx::array> scratch;
  scratch.reserve(tensors_.size());
  for (const AdafactorPlan& tensor : tensors_) {
    const size_t bytes = tensor.scratch_floats * sizeof(float);
    scratch.push_back(array_from(new_data(bytes), mx::Shape{1}, mx::uint8));
  }
  for (int pass = 0; pass < adafactor_passes; ++pass) {
    for (size_t t = 0; t < tensors_.size(); ++t) {
      if (tensors_[t].passes[pass].groups > 0) {
        encode(tensors_[t], tensors_[t].passes[pass], group_uniforms, scratch[t], outputs);
      }
    }
  }
  for (mx::array& own : scratch) {
    encoder_.add_temporary(std::move(own));
  }
  end_step(stream_, encoder_, std::move(keep_alive));
}

} // namespace

std::unique_ptr<Prepared> prepare_adafactor_step(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<AdafactorStep>(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::metal
