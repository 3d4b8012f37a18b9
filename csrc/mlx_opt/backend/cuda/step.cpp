#include "mlx_opt/backend/cuda/step.h"

#include <algorithm>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/frame.h"
#include "mlx_opt/backend/cuda/in_flight.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/cuda/tables.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mx::cu;

static_assert(max_fields == max_moments + 1);

// The tensors of an early start: few, so that they are ready soon, and no more than a table holds.
constexpr size_t vanguard = 16;
static_assert(vanguard <= capacities.small);

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
  uint64_t id; // the kernel's
  std::vector<Tensor> tensors = {};
  std::vector<Layout> layouts = {};   // of each tensor, where the kernel is Kind::strided
  std::vector<size_t> positions = {}; // of each tensor among all
  CUfunction function = nullptr;
};

class CudaStep : public Prepared {
 public:
  CudaStep(
      const mlx_opt::Schedule& schedule,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      Start start);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override;

 private:
  void add_tensor(
      const mlx_opt::Schedule& schedule,
      const mx::array* const* operands,
      const mx::Dtype* dtypes,
      size_t position);
  Group& group_of(const Kernel& kernel);
  void find_functions();
  void note_inputs(Group& group, size_t index) const;
  const Tensor& placed(Group& group, size_t index, const Buffers& outputs) const;
  void launch_next(CUfunction function, unsigned blocks, void* arguments);
  void launch_tables(Group& group, const Buffers& outputs);
  void launch_strided(Group& group, const Buffers& outputs);

  mx::Stream stream_;
  cu::CommandEncoder& encoder_;
  int fields_;
  bool early_;
  bool begun_ = false;
  const mx::array* const* inputs_; // valid as long as they are to be noted
  std::vector<Group> groups_;
  mx::array frame_;
};

CudaStep::CudaStep(
    const mlx_opt::Schedule& schedule,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    Start start)
    : stream_(stream),
      encoder_(cu::get_command_encoder(stream)),
      fields_(info(schedule.rule).moments + 1),
      early_(start == Start::early),
      inputs_(inputs.data()),
      frame_(new_frame(stream)) {
  const size_t tensors = dtypes.size() / fields_;
  for (size_t t = 0; t < tensors; ++t) {
    add_tensor(schedule, &inputs[t * (fields_ + 1)], &dtypes[t * fields_], t);
  }
  find_functions();
  wait_for_last_but_one(stream);
  launch_prepare(
      encoder_,
      function({schedule.rule, Kind::prepare}, encoder_.device()),
      schedule,
      &inputs[tensors * (fields_ + 1)],
      frame_);
  if (early_) {
    return;
  }
  for (Group& group : groups_) {
    for (size_t i = 0; i < group.tensors.size(); ++i) {
      note_inputs(group, i);
    }
  }
  // What is written needs no mention: the step is committed, so what follows is behind it. Nor does
  // what an early start reads: it has been committed before.
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
  auto group =
      std::find_if(groups_.begin(), groups_.end(), [&](const Group& g) { return g.id == id; });
  return group != groups_.end() ? *group : groups_.emplace_back(Group{kernel, id});
}

void CudaStep::find_functions() {
  for (Group& group : groups_) {
    if (group.kernel.kind != Kind::strided) {
      group.kernel.capacity = table_capacity(capacities, group.tensors.size(), encoder_.device());
    }
    group.function = function(group.kernel, encoder_.device());
  }
}

void CudaStep::note_inputs(Group& group, size_t index) const {
  const auto* operands = inputs_ + group.positions[index] * (fields_ + 1);
  for (int k = 0; k <= fields_; ++k) {
    group.tensors[index].in[k] = address<void>(*operands[k]);
  }
}

// The tensor with all its addresses.
const Tensor& CudaStep::placed(Group& group, size_t index, const Buffers& outputs) const {
  if (early_) {
    note_inputs(group, index);
  }
  Tensor& tensor = group.tensors[index];
  for (int k = 0; k < fields_; ++k) {
    auto buffer = outputs[group.positions[index] * fields_ + k];
    tensor.out[k] = static_cast<cu::CudaBuffer*>(buffer.ptr())->data;
  }
  return tensor;
}

// Behind the launch before, as if that had written the frame. The driver answers questions about
// events four times slower once it has run a graph with branches.
void CudaStep::launch_next(CUfunction function, unsigned blocks, void* arguments) {
  encoder_.set_output_array(frame_);
  launch(encoder_, function, blocks, threads, arguments);
  if (early_ && !begun_) {
    encoder_.commit();
  }
  begun_ = true;
}

void CudaStep::launch_tables(Group& group, const Buffers& outputs) {
  Table<capacities.large> table;
  table.frame = address<float>(frame_);
  for (size_t begin = 0, end = 0; begin < group.tensors.size(); begin = end) {
    const size_t most = early_ && !begun_ ? vanguard : group.kernel.capacity;
    end = std::min(begin + most, group.tensors.size());
    unsigned chunks = 0;
    for (size_t i = begin; i < end; ++i) {
      Tensor& tensor = table.tensors[i - begin] = placed(group, i, outputs);
      tensor.first_chunk = chunks;
      chunks += chunks_of(group.kernel.kind, tensor);
    }
    table.count = static_cast<int64_t>(end - begin);
    launch_next(group.function, chunks, &table);
  }
}

void CudaStep::launch_strided(Group& group, const Buffers& outputs) {
  for (size_t i = 0; i < group.tensors.size(); ++i) {
    Strided args{address<float>(frame_), placed(group, i, outputs), group.layouts[i]};
    launch_next(group.function, chunks_of(Kind::strided, args.tensor), &args);
  }
}

void CudaStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep) {
  for (Group& group : groups_) {
    group.kernel.kind == Kind::strided ? launch_strided(group, outputs)
                                       : launch_tables(group, outputs);
  }
  encoder_.add_temporary(frame_);
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
    mx::Stream stream,
    Start start) {
  return std::make_unique<CudaStep>(schedule, inputs, dtypes, stream, start);
}

} // namespace mlx_opt::cuda
