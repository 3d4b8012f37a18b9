#include "mlx_opt/backend/metal/step.h"

#include <algorithm>
#include <limits>
#include <variant>

#include "mlx_opt/backend/metal/frame.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/backend/metal/operand.h"
#include "mlx_opt/backend/metal/place.h"
#include "mlx_opt/backend/metal/source.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::metal {
namespace {

static_assert(max_fields == max_moments + 1);

// A tensor of more chunks has a dispatch of its own: it takes the GPU longer than a dispatch costs.
constexpr uint64_t most_packed_chunks = 16;

struct Operands {
  std::vector<Place> in; // parameter, moments, gradient
  size_t first_output;   // the parameter's among the outputs
  size_t size;
  bool vectors; // whether vectors can be loaded from all
};

// One kernel over one tensor, or over several where it is Kind::flat.
struct Dispatch {
  Kernel kernel;
  std::vector<Operands> tensors;
  std::variant<std::monostate, Matrix, Strided> arguments; // by the kernel's kind
  MTL::ComputePipelineState* pipeline = nullptr;
};

uint64_t chunks_of(uint64_t size) {
  return (size + chunk - 1) / chunk;
}

uint64_t tiles_of(uint64_t size) {
  return (size + tile - 1) / tile;
}

class MetalStep : public Prepared {
 public:
  MetalStep(
      const Schedule& schedule,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override;

 private:
  void add_tensor(const mx::array* const* operands, const mx::Dtype* dtypes, size_t first_output);
  Dispatch& dispatch_for(const Kernel& kernel, size_t size);
  void find_pipelines();
  void encode(const Dispatch& dispatch, const mx::array& frame, const Buffers& outputs);
  uint64_t set_pack(const Dispatch& dispatch);
  void set_operands(const Operands& tensor, int slot, const Buffers& outputs);

  Schedule schedule_;
  int fields_;
  mx::Stream stream_;
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
  std::vector<mx::array> scalars_; // step, learning rate, traced hyperparameters, scale
  std::vector<Dispatch> dispatches_;
  MTL::ComputePipelineState* prepare_ = nullptr;
};

MetalStep::MetalStep(
    const Schedule& schedule,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : schedule_(schedule),
      fields_(info(schedule.rule).moments + 1),
      stream_(stream),
      device_(mx::metal::device(stream.device)),
      encoder_(mx::metal::get_command_encoder(stream)) {
  const size_t tensors = dtypes.size() / fields_;
  for (size_t t = 0; t < tensors; ++t) {
    add_tensor(&inputs[t * (fields_ + 1)], &dtypes[t * fields_], t * fields_);
  }
  for (size_t i = tensors * (fields_ + 1); i < inputs.size(); ++i) {
    scalars_.push_back(*inputs[i]);
  }
  find_pipelines();
}

void MetalStep::add_tensor(
    const mx::array* const* operands, const mx::Dtype* dtypes, size_t first_output) {
  const size_t size = operands[0]->size();
  if (size == 0) {
    return;
  }
  Kernel kernel{schedule_.rule, Kind::flat};
  kernel.scaling = schedule_.scaling;
  Operands tensor{{}, first_output, size, vectors_fit(operands, fields_ + 1)};
  for (int k = 0; k <= fields_; ++k) {
    kernel.in[k] = storage_of(operands[k]->dtype());
    tensor.in.emplace_back(*operands[k]);
  }
  for (int k = 0; k < fields_; ++k) {
    kernel.out[k] = storage_of(dtypes[k]);
  }
  decltype(Dispatch::arguments) arguments;
  if (!all_contiguous(operands, fields_ + 1)) {
    const bool rows = all_contiguous(operands, fields_);
    const mx::array& gradient = *operands[fields_];
    if (const int columns = rows ? columns_if_transposed(gradient, tile) : 0) {
      kernel.kind = Kind::transposed;
      const uint64_t height = size / columns;
      arguments = Matrix{
          height,
          static_cast<unsigned>(columns),
          columns % lanes == 0 && vectors_fit(operands, fields_),
          height % lanes == 0 && vectors_fit(gradient)};
    } else {
      const bool small = size <= std::numeric_limits<uint32_t>::max();
      kernel.kind = small ? Kind::strided : Kind::strided_long;
      arguments = Strided{size, common_layout<Layout>(operands, fields_ + 1)};
    }
  }
  Dispatch& dispatch = dispatch_for(kernel, size);
  dispatch.tensors.push_back(std::move(tensor));
  dispatch.arguments = arguments;
}

// The dispatch that a tensor of `size` elements joins: small ones share theirs.
Dispatch& MetalStep::dispatch_for(const Kernel& kernel, size_t size) {
  const auto most = static_cast<size_t>(most_in_a_pack(kernel.rule));
  const auto packs = [&](size_t elements) { return chunks_of(elements) <= most_packed_chunks; };
  if (kernel.kind == Kind::flat && packs(size)) {
    // From the back: those in front are full.
    const auto open =
        std::find_if(dispatches_.rbegin(), dispatches_.rend(), [&](const Dispatch& d) {
          return d.kernel == kernel && d.tensors.size() < most && packs(d.tensors[0].size);
        });
    if (open != dispatches_.rend()) {
      return *open;
    }
  }
  dispatches_.push_back({kernel, {}, {}});
  return dispatches_.back();
}

// Throws what the compiler has against a kernel, while the operands are as they were.
void MetalStep::find_pipelines() {
  if (dispatches_.empty()) {
    return;
  }
  for (Dispatch& dispatch : dispatches_) {
    if (dispatch.tensors.size() > 1) {
      dispatch.kernel.capacity = most_in_a_pack(dispatch.kernel.rule);
    }
    const auto same = std::find_if(dispatches_.begin(), dispatches_.end(), [&](const Dispatch& d) {
      return d.pipeline && d.kernel == dispatch.kernel;
    });
    dispatch.pipeline =
        same != dispatches_.end() ? same->pipeline : metal::pipeline(dispatch.kernel, device_);
  }
  prepare_ = metal::pipeline(Kernel{schedule_.rule, Kind::prepare}, device_);
}

void MetalStep::set_operands(const Operands& tensor, int slot, const Buffers& outputs) {
  for (const Place& place : tensor.in) {
    encoder_.set_input_array(place.array(), slot++);
  }
  for (int k = 0; k < fields_; ++k) {
    mx::array out = Place(outputs[tensor.first_output + k], tensor.size).array();
    encoder_.set_output_array(out, slot++);
  }
}

// Hands over the table of a pack, whose unused places no threadgroup reaches; returns its chunks.
uint64_t MetalStep::set_pack(const Dispatch& dispatch) {
  std::vector<Tensor> tensors;
  uint64_t chunks = 0;
  for (const Operands& tensor : dispatch.tensors) {
    tensors.push_back({tensor.size, static_cast<unsigned>(chunks), tensor.vectors});
    chunks += chunks_of(tensor.size);
  }
  tensors.resize(dispatch.kernel.capacity, {0, std::numeric_limits<unsigned>::max(), 0});
  encoder_.set_vector_bytes(tensors, arguments_slot);
  return chunks;
}

void MetalStep::encode(const Dispatch& dispatch, const mx::array& frame, const Buffers& outputs) {
  encoder_.set_compute_pipeline_state(dispatch.pipeline);
  encoder_.set_input_array(frame, frame_slot);
  uint64_t groups = 0;
  if (const auto* matrix = std::get_if<Matrix>(&dispatch.arguments)) {
    encoder_.set_bytes(*matrix, arguments_slot);
    groups = tiles_of(matrix->rows) * tiles_of(matrix->columns);
  } else if (const auto* strided = std::get_if<Strided>(&dispatch.arguments)) {
    encoder_.set_bytes(*strided, arguments_slot);
    groups = chunks_of(strided->size);
  } else {
    groups = set_pack(dispatch);
  }
  // Every slot of a kernel has to be bound: the unused ones to the last tensor's operands.
  const int width = 2 * fields_ + 1;
  for (int t = 0; t < dispatch.kernel.capacity; ++t) {
    const size_t last = dispatch.tensors.size() - 1;
    const Operands& tensor = dispatch.tensors[std::min<size_t>(t, last)];
    set_operands(tensor, operands_slot + t * width, outputs);
  }
  encoder_.dispatch_threadgroups(MTL::Size(groups, 1, 1), MTL::Size(threads, 1, 1));
}

void MetalStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep) {
  if (dispatches_.empty()) {
    return;
  }
  const mx::array frame = encode_prepare(encoder_, prepare_, schedule_, scalars_);
  for (const Dispatch& dispatch : dispatches_) {
    encode(dispatch, frame, outputs);
  }
  auto* commands = encoder_.get_command_buffer();
  commands->addCompletedHandler([keep = std::move(keep)](MTL::CommandBuffer*) {});
  note_step(stream_, commands);
}

} // namespace

std::unique_ptr<Prepared> prepare_step(
    const Schedule& schedule,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<MetalStep>(schedule, inputs, dtypes, stream);
}

} // namespace mlx_opt::metal
