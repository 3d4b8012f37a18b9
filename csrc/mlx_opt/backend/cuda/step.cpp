#include "mlx_opt/backend/cuda/step.h"

#include <algorithm>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/frame.h"
#include "mlx_opt/backend/cuda/in_flight.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/cuda/records.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mx::cu;

// The tensors of an early start: few, so that they are ready soon.
constexpr size_t vanguard = 16;

using AnyLayout = Layout<max_operands>;

// That of a kernel's `inputs` is the beginning.
size_t layout_bytes(int inputs) {
  return sizeof(AnyLayout) - (max_operands - inputs) * sizeof(AnyLayout::strides[0]);
}

unsigned chunks_of(Walk walk, const Extent& tensor) {
  const auto size = static_cast<int64_t>(tensor.size);
  if (walk != Walk::transposed) {
    return static_cast<unsigned>((size + chunk - 1) / chunk);
  }
  const auto tiles = [](int64_t count) { return (count + tile - 1) / tile; };
  return static_cast<unsigned>(tiles(size / tensor.columns) * tiles(tensor.columns));
}

// Where a tensor's parameter is among the inputs and among the outputs.
struct Position {
  size_t input, output;
};

// The tensors that one kernel serves.
struct Share {
  explicit Share(const UpdateKernel& kernel)
      : kernel(kernel), records(kernel.in.count(), kernel.out.count()) {}

  UpdateKernel kernel;
  Records records;
  std::vector<AnyLayout> layouts;  // of each tensor, where the walk is strided
  std::vector<Position> positions; // of each tensor
  CUfunction function = nullptr;
};

class CudaStep : public Prepared {
 public:
  CudaStep(
      const StepSpec& spec,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      Start start);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override;

 private:
  void add_tensors(const StepSpec& spec, const std::vector<mx::Dtype>& dtypes);
  void add_tensor(UpdateKernel& kernel, Position position, Extent extent);
  Share& share_of(const UpdateKernel& kernel);
  void find_functions();
  void note_inputs(Share& share, size_t index) const;
  void place(Share& share, size_t index, const Buffers& outputs) const;
  void launch_next(CUfunction function, unsigned blocks, Parameter& parameter);
  void launch_tables(Share& share, const Buffers& outputs);
  void launch_strided(Share& share, const Buffers& outputs);

  mx::Stream stream_;
  cu::CommandEncoder& encoder_;
  bool early_;
  bool begun_ = false;
  const mx::array* const* inputs_; // valid as long as they are to be noted
  std::vector<Share> shares_;
  mx::array frames_;
};

FrameShape frame_shape(Rule rule) {
  return {info(rule).name, info(rule).hypers, info(rule).scalars};
}

CudaStep::CudaStep(
    const StepSpec& spec,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    Start start)
    : stream_(stream),
      encoder_(cu::get_command_encoder(stream)),
      early_(start == Start::early),
      inputs_(inputs.data()),
      frames_(new_frames(frame_shape(spec.rule), spec, stream)) {
  const size_t operands = spec.operand_count();
  add_tensors(spec, dtypes);
  find_functions();
  wait_for_last_but_one(stream);
  launch_prepare(encoder_, frame_shape(spec.rule), spec, &inputs[operands], frames_);
  if (early_) {
    return;
  }
  for (Share& share : shares_) {
    for (size_t i = 0; i < share.records.count(); ++i) {
      note_inputs(share, i);
    }
  }
  // What is written needs no mention: the step is committed, so what follows is behind it. Nor does
  // what an early start reads: it has been committed before.
  for (size_t i = 0; i < operands; ++i) {
    encoder_.set_input_array(*inputs[i]);
  }
}

void CudaStep::add_tensors(const StepSpec& spec, const std::vector<mx::Dtype>& dtypes) {
  UpdateKernel kernel{};
  kernel.rule = info(spec.rule).name;
  kernel.scaling = spec.scaling;
  Position position{};
  size_t tensor = 0;
  for (const auto& [tensors, operands] : spec.runs) {
    if (operands > max_operands) {
      throw std::runtime_error(
          "mlx_opt: a tensor of " + std::string(kernel.rule) + " has " + std::to_string(operands) +
          " operands, and the kernels of CUDA take at most " + std::to_string(max_operands));
    }
    for (const size_t end = tensor + tensors; tensor < end; ++tensor) {
      const auto* arrays = inputs_ + position.input;
      if (arrays[0]->size() > 0) {
        kernel.in = kernel.out = {};
        for (int k = 0; k < operands; ++k) {
          kernel.in.add(storage_of(arrays[k]->dtype()));
        }
        for (int k = 0; k < operands - 1; ++k) {
          kernel.out.add(storage_of(dtypes[position.output + k]));
        }
        Extent extent{};
        extent.size = arrays[0]->size();
        extent.group = spec.group_of(tensor);
        add_tensor(kernel, position, extent);
      }
      position.input += operands;
      position.output += operands - 1;
    }
  }
}

// Sets the kernel's walk.
void CudaStep::add_tensor(UpdateKernel& kernel, Position position, Extent extent) {
  const auto* arrays = inputs_ + position.input;
  const int fields = kernel.out.count();
  kernel.walk = Walk::flat;
  if (!all_contiguous(arrays, fields + 1)) {
    const bool rows = all_contiguous(arrays, fields);
    extent.columns = rows ? columns_if_transposed(*arrays[fields], tile) : 0;
    kernel.walk = extent.columns ? Walk::transposed : Walk::strided;
  }
  Share& share = share_of(kernel);
  share.records.add(extent);
  share.positions.push_back(position);
  if (kernel.walk == Walk::strided) {
    share.layouts.push_back(common_layout<AnyLayout>(arrays, fields + 1));
  }
}

Share& CudaStep::share_of(const UpdateKernel& kernel) {
  auto share = std::find_if(
      shares_.begin(), shares_.end(), [&](const Share& s) { return s.kernel == kernel; });
  return share != shares_.end() ? *share : shares_.emplace_back(kernel);
}

void CudaStep::find_functions() {
  for (Share& share : shares_) {
    if (share.kernel.walk != Walk::strided) {
      share.kernel.capacity =
          table_capacity(share.records.bytes(), share.records.count(), encoder_.device());
    }
    share.function = function(share.kernel, encoder_.device());
  }
}

void CudaStep::note_inputs(Share& share, size_t index) const {
  const auto* arrays = inputs_ + share.positions[index].input;
  for (int k = 0; k < share.kernel.in.count(); ++k) {
    share.records.set_input(index, k, address<void>(*arrays[k]));
  }
}

// Gives the tensor all its addresses.
void CudaStep::place(Share& share, size_t index, const Buffers& outputs) const {
  if (early_) {
    note_inputs(share, index);
  }
  for (int k = 0; k < share.kernel.out.count(); ++k) {
    auto buffer = outputs[share.positions[index].output + k];
    share.records.set_output(index, k, static_cast<cu::CudaBuffer*>(buffer.ptr())->data);
  }
}

// Behind the launch before, as if that had written the frames. The driver answers questions about
// events four times slower once it has run a graph with branches.
void CudaStep::launch_next(CUfunction function, unsigned blocks, Parameter& parameter) {
  encoder_.set_output_array(frames_);
  launch(encoder_, function, blocks, threads, parameter.data());
  if (early_ && !begun_) {
    encoder_.commit();
  }
  begun_ = true;
}

void CudaStep::launch_tables(Share& share, const Buffers& outputs) {
  Records& records = share.records;
  const auto capacity = static_cast<size_t>(share.kernel.capacity);
  for (size_t begin = 0, end = 0; begin < records.count(); begin = end) {
    const size_t most = early_ && !begun_ ? std::min(vanguard, capacity) : capacity;
    end = std::min(begin + most, records.count());
    unsigned chunks = 0;
    for (size_t i = begin; i < end; ++i) {
      place(share, i, outputs);
      Extent extent = records[i];
      extent.first_chunk = chunks;
      records.set(i, extent);
      chunks += chunks_of(share.kernel.walk, extent);
    }
    Parameter parameter;
    parameter.add(address<float>(frames_));
    parameter.add(static_cast<int64_t>(end - begin));
    parameter.add(records.at(begin), (end - begin) * records.bytes());
    launch_next(share.function, chunks, parameter);
  }
}

void CudaStep::launch_strided(Share& share, const Buffers& outputs) {
  for (size_t i = 0; i < share.records.count(); ++i) {
    place(share, i, outputs);
    Parameter parameter;
    parameter.add(address<float>(frames_));
    parameter.add(share.records.at(i), share.records.bytes());
    parameter.add(&share.layouts[i], layout_bytes(share.kernel.in.count()));
    launch_next(share.function, chunks_of(Walk::strided, share.records[i]), parameter);
  }
}

void CudaStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep) {
  for (Share& share : shares_) {
    share.kernel.walk == Walk::strided ? launch_strided(share, outputs)
                                       : launch_tables(share, outputs);
  }
  encoder_.add_temporary(frames_);
  encoder_.add_completed_handler([keep = std::move(keep)] {});
  // Now, so that the GPU is at work while the host goes through the results.
  encoder_.commit();
  note_step(stream_, encoder_);
}

} // namespace

std::unique_ptr<Prepared> prepare_update(
    const StepSpec& spec,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    Start start) {
  return std::make_unique<CudaStep>(spec, inputs, dtypes, stream, start);
}

} // namespace mlx_opt::cuda
