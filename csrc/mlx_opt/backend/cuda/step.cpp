#include "mlx_opt/backend/cuda/step.h"

#include <algorithm>
#include <utility>

#include "mlx_opt/backend/cuda/queue.h"
#include "mlx_opt/backend/cuda/shares.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::cuda {
namespace {

// The number of tensors in the first launch of a split step: few, so that the GPU has work soon.
constexpr size_t early_tensors = 16;

class CudaStep : public Prepared {
 public:
  CudaStep(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      LaunchMode mode);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override;

 private:
  void add_tensors(
      const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes);
  void note_inputs(Share& share, size_t index) const;
  void place(Share& share, size_t index, const Buffers& outputs) const;

  StepQueue queue_;
  bool split_;
  const mx::array* const* inputs_; // valid until their addresses are recorded
  std::vector<Position> positions_;
  std::vector<uint32_t> rounding_keys_; // of all tensors of the step, or none
  Shares shares_;
};

CudaStep::CudaStep(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode)
    : queue_(spec, stream),
      split_(mode == LaunchMode::split),
      inputs_(inputs.data()),
      rounding_keys_(spec.rounding_keys) {
  add_tensors(spec, inputs, dtypes);
  shares_.find_functions(queue_.encoder().device());
  queue_.begin(spec, inputs);
  if (split_) {
    return; // what it reads has been committed before
  }
  for (Share& share : shares_.all()) {
    for (size_t i = 0; i < share.records.count(); ++i) {
      note_inputs(share, i);
    }
  }
  queue_.read_operands(spec, inputs);
}

void CudaStep::add_tensors(
    const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes) {
  UpdateKernel kernel{};
  kernel.rule = info(spec.rule).name;
  kernel.scaling = spec.scaling;
  kernel.clips = spec.clips_values;
  for_each_tensor(spec, inputs, [&](Position position, int operands, const Extent& extent) {
    const auto* arrays = &inputs[position.input];
    const int fields = operands - 1 - position.scales;
    const mx::array* of_kernel[max_operands]; // without scales
    kernel.masters = position.masters;
    kernel.scales = position.scales;
    kernel.has_ema = spec.has_ema;
    kernel.in = kernel.out = {};
    kernel.rounds = spec.rounds() && has_bfloat16(&dtypes[position.output], fields);
    for (int k = 0; k < fields; ++k) {
      of_kernel[k] = arrays[k];
      kernel.in.add(storage_of(arrays[k]->dtype()));
      kernel.out.add(storage_of(dtypes[position.output + k]));
    }
    of_kernel[fields] = arrays[operands - 1];
    kernel.in.add(storage_of(of_kernel[fields]->dtype()));
    add_with_gradient(shares_, kernel, positions_.size(), extent, of_kernel);
    positions_.push_back(position);
  });
}

void CudaStep::note_inputs(Share& share, size_t index) const {
  const auto* arrays = inputs_ + positions_[share.tensors[index]].input;
  const int fields = share.kernel.out.count(), scales = share.kernel.scales;
  const auto note = [&](int k, const mx::array& x) {
    share.records.set_input(index, k, address<void>(x));
  };
  for (int k = 0; k < fields; ++k) {
    note(k, *arrays[k]);
  }
  note(fields, *arrays[fields + scales]); // the gradient
  for (int k = 0; k < scales; ++k) {
    note(fields + 1 + k, *arrays[fields + k]);
  }
}

// Sets all addresses of the tensor.
void CudaStep::place(Share& share, size_t index, const Buffers& outputs) const {
  if (split_) {
    note_inputs(share, index);
  }
  const size_t first = positions_[share.tensors[index]].output;
  for (int k = 0; k < share.kernel.out.count(); ++k) {
    share.records.set_output(index, k, address(outputs[first + k]));
  }
  if (share.kernel.rounds) {
    const uintptr_t key = rounding_keys_[positions_[share.tensors[index]].tensor];
    share.records.set_output(index, share.kernel.out.count(), reinterpret_cast<void*>(key));
  }
  const int fields = share.kernel.out.count(), scales = share.kernel.scales;
  for (int k = 0; k < scales; ++k) {
    const int behind = share.kernel.outputs() - scales;
    share.records.set_output(index, behind + k, address(outputs[first + fields + k]));
  }
}

void CudaStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) {
  bool is_early_launch = split_;
  for (Share& share : shares_.all()) {
    for (size_t begin = 0, end = 0; begin < share.records.count(); begin = end) {
      const size_t max_count =
          is_early_launch ? std::min(early_tensors, share.capacity()) : share.capacity();
      end = std::min(begin + max_count, share.records.count());
      for (size_t i = begin; i < end; ++i) {
        place(share, i, outputs);
      }
      queue_.launch(share, begin, end);
      if (std::exchange(is_early_launch, false)) {
        queue_.encoder().commit();
      }
    }
  }
  queue_.end(std::move(keep_alive));
}

} // namespace

std::unique_ptr<Prepared> prepare_update(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode) {
  return std::make_unique<CudaStep>(spec, inputs, dtypes, stream, mode);
}

} // namespace mlx_opt::cuda
