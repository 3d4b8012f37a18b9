#include "mlx_opt/backend/metal/step.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "mlx_opt/backend/metal/frame.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/leaf.h"
#include "mlx_opt/backend/metal/library.h"

namespace mlx_opt::metal {
namespace {

// A tensor of more chunks has a dispatch of its own: it takes the GPU longer than a dispatch costs.
constexpr uint64_t most_packed_chunks = 16;

// One kernel over one tensor, or over several where they are flat.
struct Dispatch {
  UpdateKernel kernel;
  std::vector<const Leaf*> leaves{};
  MTL::ComputePipelineState* pipeline = nullptr;
};

bool may_pack(const Leaf& leaf) {
  return leaf.kernel.walk == Walk::flat && leaf.threadgroups <= most_packed_chunks;
}

class MetalStep : public Prepared {
 public:
  MetalStep(
      const StepSpec& spec,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override;

 private:
  void add_tensors(
      const StepSpec& spec, const Pointers& inputs, const std::vector<mx::Dtype>& dtypes);
  void find_dispatches();
  Dispatch& dispatch_for(const Leaf& leaf);
  void encode(const Dispatch& dispatch, const mx::array& frames, const Buffers& outputs);
  uint64_t set_pack(const Dispatch& dispatch);
  void set_operands(const Leaf& leaf, int slot, const Buffers& outputs);

  mx::Stream stream_;
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
  std::vector<Leaf> leaves_;
  std::vector<Dispatch> dispatches_;
  std::optional<Frames> frames_;
};

MetalStep::MetalStep(
    const StepSpec& spec,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      device_(mx::metal::device(stream.device)),
      encoder_(mx::metal::get_command_encoder(stream)) {
  add_tensors(spec, inputs, dtypes);
  if (!leaves_.empty()) {
    find_dispatches();
    const auto& rule = info(spec.rule);
    const FrameShape shape{rule.name, rule.hypers, rule.scalars};
    frames_.emplace(shape, spec, inputs.data() + spec.operand_count(), device_);
  }
}

void MetalStep::add_tensors(
    const StepSpec& spec, const Pointers& inputs, const std::vector<mx::Dtype>& dtypes) {
  size_t tensor = 0, input = 0, output = 0;
  for (const auto& [tensors, operands] : spec.runs) {
    UpdateKernel kernel{info(spec.rule).name, Walk::flat, spec.scaling, 1, {}};
    kernel.operands.in.resize(operands);
    kernel.operands.out.resize(operands - 1);
    kernel.operands.written.resize(operands - 1);
    for (const size_t end = tensor + tensors; tensor < end; ++tensor) {
      if (inputs[input]->size() > 0) {
        leaves_.emplace_back(
            kernel, &inputs[input], &dtypes[output], output, spec.group_of(tensor));
      }
      input += operands;
      output += operands - 1;
    }
  }
}

// Throws what the compiler has against a kernel.
void MetalStep::find_dispatches() {
  dispatches_.clear();
  for (const Leaf& leaf : leaves_) {
    dispatch_for(leaf).leaves.push_back(&leaf);
  }
  for (Dispatch& dispatch : dispatches_) {
    if (dispatch.leaves.size() > 1) {
      dispatch.kernel.capacity = most_in_a_pack(dispatch.kernel.operands);
    }
    const auto same = std::find_if(dispatches_.begin(), dispatches_.end(), [&](const Dispatch& d) {
      return d.pipeline && d.kernel == dispatch.kernel;
    });
    dispatch.pipeline =
        same != dispatches_.end() ? same->pipeline : metal::pipeline(dispatch.kernel, device_);
  }
}

// The dispatch that a tensor joins: small ones share theirs.
Dispatch& MetalStep::dispatch_for(const Leaf& leaf) {
  const auto most = static_cast<size_t>(most_in_a_pack(leaf.kernel.operands));
  if (may_pack(leaf)) {
    // From the back: those in front are full.
    const auto open =
        std::find_if(dispatches_.rbegin(), dispatches_.rend(), [&](const Dispatch& d) {
          return d.kernel == leaf.kernel && d.leaves.size() < most && may_pack(*d.leaves[0]);
        });
    if (open != dispatches_.rend()) {
      return *open;
    }
  }
  return dispatches_.emplace_back(Dispatch{leaf.kernel});
}

void MetalStep::set_operands(const Leaf& leaf, int slot, const Buffers& outputs) {
  const Operands& operands = leaf.kernel.operands;
  for (size_t k = 0; k < leaf.in.size(); ++k) {
    mx::array x = leaf.in[k].array();
    if (operands.overwrites(static_cast<int>(k))) {
      encoder_.set_output_array(x, slot++);
    } else {
      encoder_.set_input_array(x, slot++);
    }
  }
  for (size_t k = 0; k < operands.out.size(); ++k) {
    if (operands.written[k] == apart) {
      mx::array x = Place(outputs[leaf.first_output + k], leaf.size).array();
      encoder_.set_output_array(x, slot++);
    }
  }
}

// Hands over the table of a pack, whose unused places no threadgroup reaches; returns its chunks.
uint64_t MetalStep::set_pack(const Dispatch& dispatch) {
  std::vector<Tensor> tensors;
  uint64_t chunks = 0;
  for (const Leaf* leaf : dispatch.leaves) {
    tensors.push_back({leaf->size, static_cast<unsigned>(chunks), leaf->group, leaf->vectors});
    chunks += leaf->threadgroups;
  }
  tensors.resize(dispatch.kernel.capacity, {0, std::numeric_limits<unsigned>::max(), 0, 0});
  encoder_.set_vector_bytes(tensors, arguments_slot);
  return chunks;
}

void MetalStep::encode(const Dispatch& dispatch, const mx::array& frames, const Buffers& outputs) {
  encoder_.set_compute_pipeline_state(dispatch.pipeline);
  encoder_.set_input_array(frames, frames_slot);
  uint64_t groups = dispatch.leaves[0]->threadgroups;
  if (dispatch.kernel.walk == Walk::flat) {
    groups = set_pack(dispatch);
  } else {
    encoder_.set_vector_bytes(dispatch.leaves[0]->arguments, arguments_slot);
  }
  // Every slot of a kernel has to be bound: the unused ones to the last tensor's operands.
  const int width = dispatch.kernel.operands.slots();
  for (int t = 0; t < dispatch.kernel.capacity; ++t) {
    const size_t last = dispatch.leaves.size() - 1;
    set_operands(*dispatch.leaves[std::min<size_t>(t, last)], operands_slot + t * width, outputs);
  }
  encoder_.dispatch_threadgroups(MTL::Size(groups, 1, 1), MTL::Size(threads, 1, 1));
}

void MetalStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep) {
  if (leaves_.empty()) {
    return;
  }
  bool as_expected = true;
  for (Leaf& leaf : leaves_) {
    as_expected &= leaf.place(outputs);
  }
  if (!as_expected) {
    find_dispatches();
  }
  const mx::array frames = frames_->encode(encoder_);
  for (const Dispatch& dispatch : dispatches_) {
    encode(dispatch, frames, outputs);
  }
  auto* commands = encoder_.get_command_buffer();
  commands->addCompletedHandler([keep = std::move(keep)](MTL::CommandBuffer*) {});
  note_step(stream_, commands);
}

} // namespace

std::unique_ptr<Prepared> prepare_update(
    const StepSpec& spec,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<MetalStep>(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::metal
