#include "mlx_opt/backend/cuda/step.h"

#include <algorithm>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/frame.h"
#include "mlx_opt/backend/cuda/in_flight.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/cuda/tables.h"
#include "mlx_opt/layout.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mx::cu;

static_assert(max_fields == max_moments + 1);

unsigned chunks_of(Kind kind, const Tensor& tensor) {
  if (kind != Kind::transposed) {
    return static_cast<unsigned>((tensor.size + chunk - 1) / chunk);
  }
  const auto tiles = [](int64_t size) { return (size + tile - 1) / tile; };
  return static_cast<unsigned>(tiles(tensor.size / tensor.columns) * tiles(tensor.columns));
}

// The tensors that one kernel serves.
struct Group {
  Kernel kernel;
  std::vector<Tensor> tensors;
  std::vector<Layout> layouts;   // of each tensor, where the kernel is Kind::strided
  std::vector<size_t> positions; // of each tensor's parameter among the outputs
  CUfunction function = nullptr;
};

class CudaStep : public Prepared {
 public:
  CudaStep(
      const mlx_opt::Schedule& schedule,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(
      const std::vector<mx::allocator::Buffer>& outputs, std::shared_ptr<void> keep) override;

 private:
  void add_tensor(
      const mlx_opt::Schedule& schedule,
      const mx::array* const* operands,
      const mx::Dtype* dtypes,
      size_t position);
  Group& group_of(const Kernel& kernel);
  void find_functions();
  void launch_next(CUfunction function, unsigned blocks, void* arguments);
  void launch_tables(Group& group);
  void launch_strided(const Group& group);

  mx::Stream stream_;
  cu::CommandEncoder& encoder_;
  int fields_;
  std::vector<Group> groups_;
  mx::array frame_;
};

CudaStep::CudaStep(
    const mlx_opt::Schedule& schedule,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      encoder_(cu::get_command_encoder(stream)),
      fields_(info(schedule.rule).moments + 1),
      frame_(new_frame(stream)) {
  const size_t tensors = dtypes.size() / fields_;
  for (size_t t = 0; t < tensors; ++t) {
    add_tensor(schedule, &inputs[t * (fields_ + 1)], &dtypes[t * fields_], t * fields_);
  }
  find_functions();
  wait_for_last_but_one(stream);
  launch_prepare(
      encoder_,
      function({schedule.rule, Kind::prepare}, encoder_.device()),
      schedule,
      &inputs[tensors * (fields_ + 1)],
      frame_);
  // What is written needs no mention: the step is committed, so what follows is behind it.
  for (size_t i = 0; i < tensors * (fields_ + 1); ++i) {
    encoder_.set_input_array(*inputs[i]);
  }
}

void CudaStep::add_tensor(
    const mlx_opt::Schedule& schedule,
    const mx::array* const* operands,
    const mx::Dtype* dtypes,
    size_t position) {
  if (operands[0]->size() == 0) {
    return;
  }
  Kernel kernel{schedule.rule, Kind::flat};
  kernel.scaling = schedule.scaling;
  Tensor tensor{};
  tensor.size = static_cast<int64_t>(operands[0]->size());
  for (int k = 0; k <= fields_; ++k) {
    kernel.in[k] = storage_of(operands[k]->dtype());
    tensor.in[k] = address<void>(*operands[k]);
  }
  for (int k = 0; k < fields_; ++k) {
    kernel.out[k] = storage_of(dtypes[k]);
  }
  if (!all_contiguous(operands, fields_ + 1)) {
    const bool rows = all_contiguous(operands, fields_);
    tensor.columns = rows ? columns_if_transposed(*operands[fields_], tile) : 0;
    kernel.kind = tensor.columns ? Kind::transposed : Kind::strided;
  }
  Group& group = group_of(kernel);
  group.tensors.push_back(tensor);
  group.positions.push_back(position);
  if (kernel.kind == Kind::strided) {
    group.layouts.push_back(common_layout<Layout>(operands, fields_ + 1));
  }
}

Group& CudaStep::group_of(const Kernel& kernel) {
  const uint64_t id = kernel.id();
  auto group = std::find_if(
      groups_.begin(), groups_.end(), [&](const Group& g) { return g.kernel.id() == id; });
  if (group == groups_.end()) {
    groups_.push_back({kernel, {}, {}, {}, nullptr});
    return groups_.back();
  }
  return *group;
}

void CudaStep::find_functions() {
  for (Group& group : groups_) {
    if (group.kernel.kind != Kind::strided) {
      group.kernel.capacity = table_capacity(capacities, group.tensors.size(), encoder_.device());
    }
    group.function = function(group.kernel, encoder_.device());
  }
}

// Behind the launch before, as if that had written the frame. The driver answers questions about
// events four times slower once it has run a graph with branches.
void CudaStep::launch_next(CUfunction function, unsigned blocks, void* arguments) {
  encoder_.set_output_array(frame_);
  launch(encoder_, function, blocks, threads, arguments);
}

void CudaStep::launch_tables(Group& group) {
  Table<capacities.large> table;
  table.frame = address<float>(frame_);
  for (size_t begin = 0; begin < group.tensors.size(); begin += group.kernel.capacity) {
    const size_t end = std::min(begin + group.kernel.capacity, group.tensors.size());
    unsigned chunks = 0;
    for (size_t i = begin; i < end; ++i) {
      Tensor& tensor = table.tensors[i - begin] = group.tensors[i];
      tensor.first_chunk = chunks;
      chunks += chunks_of(group.kernel.kind, tensor);
    }
    table.count = static_cast<int64_t>(end - begin);
    launch_next(group.function, chunks, &table);
  }
}

void CudaStep::launch_strided(const Group& group) {
  for (size_t i = 0; i < group.tensors.size(); ++i) {
    Strided args{address<float>(frame_), group.tensors[i], group.layouts[i]};
    launch_next(group.function, chunks_of(Kind::strided, args.tensor), &args);
  }
}

void CudaStep::enqueue(
    const std::vector<mx::allocator::Buffer>& outputs, std::shared_ptr<void> keep) {
  for (Group& group : groups_) {
    for (size_t i = 0; i < group.tensors.size(); ++i) {
      for (int k = 0; k < fields_; ++k) {
        auto buffer = outputs[group.positions[i] + k];
        group.tensors[i].out[k] = static_cast<cu::CudaBuffer*>(buffer.ptr())->data;
      }
    }
  }
  for (Group& group : groups_) {
    group.kernel.kind == Kind::strided ? launch_strided(group) : launch_tables(group);
  }
  encoder_.add_completed_handler([keep = std::move(keep)] {});
  // Now, so that the GPU is at work while the host goes through the results.
  encoder_.commit();
  note_step(stream_, encoder_);
}

} // namespace

std::unique_ptr<Prepared> prepare_step(
    const mlx_opt::Schedule& schedule,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<CudaStep>(schedule, inputs, dtypes, stream);
}

} // namespace mlx_opt::cuda
