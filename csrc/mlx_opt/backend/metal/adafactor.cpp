#include "mlx_opt/backend/metal/adafactor.h"

#include <algorithm>

#include "mlx/allocator.h"
#include "mlx_opt/backend/metal/adafactor_tensor.h"
#include "mlx_opt/backend/metal/frame.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/library.h"

namespace mlx_opt::metal {
namespace {

class AdafactorStep : public Prepared {
 public:
  AdafactorStep(
      const ScalarSources& sources,
      const Factoring& factoring,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override;

 private:
  void find_pipelines();
  void encode(
      const FactorPlan& tensor,
      const FactorPass& pass,
      const mx::array& frame,
      mx::array& scratch,
      const Buffers& outputs);

  ScalarSources sources_;
  mx::Stream stream_;
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
  std::vector<FactorPlan> tensors_;
  std::vector<mx::array> scalars_; // step, learning rate, traced hyperparameters, scale
  MTL::ComputePipelineState* prepare_ = nullptr;
};

AdafactorStep::AdafactorStep(
    const ScalarSources& sources,
    const Factoring& factoring,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : sources_(sources),
      stream_(stream),
      device_(mx::metal::device(stream.device)),
      encoder_(mx::metal::get_command_encoder(stream)) {
  const mx::array* const* operands = inputs.data();
  size_t position = 0;
  for (size_t t = 0; t < factoring.unfactored + factoring.factored; ++t) {
    const bool factored = t >= factoring.unfactored;
    // A matrix of nothing may have means that are to be kept.
    if (operands[0]->size() || factored) {
      tensors_.emplace_back(
          FactorFields{factored, factoring.first_moment},
          operands,
          &dtypes[position],
          position,
          sources.scaling == Scaling::if_finite);
    }
    operands += factoring.operands(factored);
    position += factoring.operands(factored) - 1;
  }
  for (; operands < inputs.data() + inputs.size(); ++operands) {
    scalars_.push_back(**operands);
  }
  find_pipelines();
}

// Throws what the compiler has against a kernel, while the operands are as they were.
void AdafactorStep::find_pipelines() {
  std::vector<const FactorPass*> found;
  for (FactorPlan& tensor : tensors_) {
    for (FactorPass& pass : tensor.passes) {
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
  if (!found.empty()) {
    prepare_ = pipeline(FactorKernel{FactorKind::prepare, {}, {}}, device_);
  }
}

void AdafactorStep::encode(
    const FactorPlan& tensor,
    const FactorPass& pass,
    const mx::array& frame,
    mx::array& scratch,
    const Buffers& outputs) {
  encoder_.set_compute_pipeline_state(pass.pipeline);
  encoder_.set_input_array(frame, frame_slot);
  if (pass.kernel.strided) {
    encoder_.set_bytes(tensor.arguments, arguments_slot);
  } else {
    encoder_.set_bytes(FactorArguments{tensor.arguments.tensor}, arguments_slot);
  }
  encoder_.set_output_array(scratch, scratch_slot);
  int slot = scratch_slot + 1;
  for (FactorOperand operand : pass.in) {
    const Place& place = tensor.in[tensor.fields.place_of(operand)];
    // What is of no elements may have no buffer.
    encoder_.set_input_array(place.data_size ? place.array() : scratch, slot++);
  }
  for (FactorOperand operand : pass.out) {
    const int k = tensor.fields.place_of(operand);
    const size_t size = tensor.in[k].data_size;
    mx::array out = size ? Place(outputs[tensor.first_output + k], size).array() : scratch;
    encoder_.set_output_array(out, slot++);
  }
  encoder_.dispatch_threadgroups(MTL::Size(pass.groups, 1, 1), MTL::Size(threads, 1, 1));
}

// Pass after pass over all tensors, so that MLX inserts one barrier a pass: a tensor's scratch is
// its own, and different tensors overlap.
void AdafactorStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep) {
  if (!prepare_) {
    return;
  }
  const mx::array frame = encode_prepare(encoder_, prepare_, sources_, scalars_);
  std::vector<mx::array> scratch;
  scratch.reserve(tensors_.size());
  for (const FactorPlan& tensor : tensors_) {
    const size_t bytes = tensor.scratch_floats * sizeof(float);
    scratch.emplace_back(mx::allocator::malloc(bytes), mx::Shape{1}, mx::uint8);
  }
  for (int pass = 0; pass < factor_passes; ++pass) {
    for (size_t t = 0; t < tensors_.size(); ++t) {
      if (tensors_[t].passes[pass].groups > 0) {
        encode(tensors_[t], tensors_[t].passes[pass], frame, scratch[t], outputs);
      }
    }
  }
  for (mx::array& own : scratch) {
    encoder_.add_temporary(std::move(own));
  }
  auto* commands = encoder_.get_command_buffer();
  commands->addCompletedHandler([keep = std::move(keep)](MTL::CommandBuffer*) {});
  note_step(stream_, commands);
}

} // namespace

std::unique_ptr<Prepared> prepare_adafactor_step(
    const ScalarSources& sources,
    const Factoring& factoring,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<AdafactorStep>(sources, factoring, inputs, dtypes, stream);
}

} // namespace mlx_opt::metal
