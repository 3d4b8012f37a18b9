#include "mlx_opt/backend/metal/norm.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/backend/metal/norm_source.h"
#include "mlx_opt/backend/metal/norm_tables.h"
#include "mlx_opt/backend/metal/place.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::metal {
namespace {

using Encoder = mx::metal::CommandEncoder;

// A larger tensor has a dispatch of its own, which costs less than running the tensor.
constexpr uint64_t max_packed_chunks = 4;

constexpr int floats = sizeof(Sum) / sizeof(float);

uint64_t chunks_of(const mx::array& x) {
  return (x.size() + norm_chunk - 1) / norm_chunk;
}

// One kernel over one tensor, or over several if it is NormKind::squares.
struct Dispatch {
  NormKernel kernel;
  std::vector<mx::array> tensors;
  std::optional<Strided<1>> layout;
  MTL::ComputePipelineState* pipeline = nullptr;

  uint64_t chunks() const {
    uint64_t count = 0;
    for (const mx::array& x : tensors) {
      count += chunks_of(x);
    }
    return count;
  }
};

class Dispatches {
 public:
  void add(const mx::array& x);
  std::vector<Dispatch> all(mx::metal::Device& device);

 private:
  Dispatch& open(Storage storage);

  std::vector<Dispatch> dispatches_;
};

void Dispatches::add(const mx::array& x) {
  if (x.size() == 0) {
    return;
  }
  const Storage storage = storage_of(x.dtype());
  if (!x.flags().contiguous || x.data_size() != x.size()) {
    const bool small = x.size() <= std::numeric_limits<uint32_t>::max();
    const auto kind = small ? NormKind::strided_squares : NormKind::strided_squares_long;
    dispatches_.push_back(
        {{kind, storage}, {x}, Strided<1>{x.size(), 0, 0, layout_of<Layout<1>>(x)}});
  } else if (chunks_of(x) > max_packed_chunks) {
    dispatches_.push_back({{NormKind::squares, storage}, {x}, {}});
  } else {
    open(storage).tensors.push_back(x);
  }
}

// A dispatch over small tensors of this storage with room for one more.
Dispatch& Dispatches::open(Storage storage) {
  const NormKernel kernel{NormKind::squares, storage, max_squares_per_pack};
  const auto last = std::find_if(dispatches_.rbegin(), dispatches_.rend(), [&](const Dispatch& d) {
    return d.kernel == kernel;
  });
  if (last != dispatches_.rend() && last->tensors.size() < max_squares_per_pack) {
    return *last;
  }
  dispatches_.push_back({kernel, {}, {}});
  return dispatches_.back();
}

// Compiles the kernels before anything is encoded, and throws the compiler's error.
std::vector<Dispatch> Dispatches::all(mx::metal::Device& device) {
  for (Dispatch& dispatch : dispatches_) {
    dispatch.pipeline = pipeline(dispatch.kernel, device);
  }
  return std::move(dispatches_);
}

// A view of `count` of the sums, from number `first` on.
mx::array part_of(const mx::array& sums, uint64_t first, uint64_t count) {
  const auto size = static_cast<int>(count * floats);
  mx::array part({size}, mx::float32, nullptr, {});
  part.copy_shared_buffer(
      sums, {1}, {true, true, true}, size, static_cast<int64_t>(first * floats));
  return part;
}

// Binds the table of a pack. No threadgroup reaches its unused entries.
void set_pack(Encoder& encoder, const Dispatch& dispatch) {
  std::vector<Tensor> tensors;
  unsigned chunks = 0;
  for (const mx::array& x : dispatch.tensors) {
    tensors.push_back({x.size(), chunks, 0, vectors_fit(x)});
    chunks += static_cast<unsigned>(chunks_of(x));
  }
  tensors.resize(dispatch.kernel.capacity, {0, std::numeric_limits<unsigned>::max(), 0, 0});
  encoder.set_vector_bytes(tensors, arguments_slot);
}

void encode_squares(Encoder& encoder, const Dispatch& dispatch, mx::array sums) {
  encoder.set_compute_pipeline_state(dispatch.pipeline);
  encoder.set_output_array(sums, result_slot);
  if (dispatch.layout) {
    encoder.set_bytes(*dispatch.layout, arguments_slot);
  } else {
    set_pack(encoder, dispatch);
  }
  // Every slot of a kernel must be bound: unused ones to the last tensor.
  for (int t = 0; t < dispatch.kernel.capacity; ++t) {
    const size_t last = dispatch.tensors.size() - 1;
    encoder.set_input_array(dispatch.tensors[std::min<size_t>(t, last)], operands_slot + t);
  }
  encoder.dispatch_threadgroups(MTL::Size(dispatch.chunks(), 1, 1), MTL::Size(threads, 1, 1));
}

} // namespace

void enqueue_norm(const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream) {
  auto& device = mx::metal::device(stream.device);
  auto& encoder = mx::metal::get_command_encoder(stream);
  Dispatches operands;
  uint64_t chunks = 0;
  for (const mx::array& x : arrays) {
    operands.add(x);
    chunks += chunks_of(x);
  }
  const auto dispatches = operands.all(device);
  auto* root = pipeline(NormKernel{NormKind::norm}, device);
  const uint64_t room = std::max<uint64_t>(chunks, 1);
  const auto size = static_cast<int>(room * floats);
  mx::array sums = array_from(new_data(room * sizeof(Sum)), {size}, mx::float32);
  {
    // The dispatches write to disjoint parts of one buffer that nothing before them uses, so they
    // need no barriers between them.
    const auto concurrent = encoder.start_concurrent();
    uint64_t first = 0;
    for (const Dispatch& dispatch : dispatches) {
      encode_squares(encoder, dispatch, part_of(sums, first, dispatch.chunks()));
      first += dispatch.chunks();
    }
  }
  set_data(output, new_data(output.nbytes()));
  encoder.set_compute_pipeline_state(root);
  encoder.set_output_array(output, result_slot);
  encoder.set_bytes(chunks, arguments_slot);
  encoder.set_input_array(sums, operands_slot);
  encoder.dispatch_threadgroups(MTL::Size(1, 1, 1), MTL::Size(threads, 1, 1));
  encoder.add_temporary(std::move(sums));
}

void enqueue_clip(
    const std::vector<mx::array>& inputs,
    float max_norm,
    bool skip_nonfinite,
    mx::array& scale,
    mx::Stream stream) {
  auto& encoder = mx::metal::get_command_encoder(stream);
  auto* kernel = pipeline(NormKernel{NormKind::clip}, mx::metal::device(stream.device));
  set_data(scale, new_data(scale.nbytes()));
  encoder.set_compute_pipeline_state(kernel);
  encoder.set_output_array(scale, result_slot);
  encoder.set_bytes(Clip{max_norm, inputs.size() > 1, skip_nonfinite}, arguments_slot);
  encoder.set_input_array(inputs.front(), operands_slot);
  encoder.set_input_array(inputs.back(), operands_slot + 1);
  encoder.dispatch_threadgroups(MTL::Size(1, 1, 1), MTL::Size(1, 1, 1));
}

} // namespace mlx_opt::metal
