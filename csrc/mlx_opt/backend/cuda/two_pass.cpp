#include "mlx_opt/backend/cuda/two_pass.h"

#include <algorithm>

#include "mlx_opt/backend/cuda/memory.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/queue.h"
#include "mlx_opt/backend/cuda/shares.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::cuda {
namespace {

// Makes the slots, operands [1, fields) of a layout, row-contiguous, as the new ones are.
void set_new_slots(AnyLayout& layout, int fields) {
  int64_t stride = 1;
  for (int dim = layout.dims - 1; dim >= 0; --dim) {
    for (int k = 1; k < fields; ++k) {
      layout.strides[k][dim] = stride;
    }
    stride *= layout.shape[dim];
  }
}

// The tensors of a step, in the tables of each of its launches.
class Tensors {
 public:
  Tensors(const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes);

  void find_functions(const mx::cu::Device& device);

  // Bytes for the sums of all chunks, followed by the rates of all tensors.
  size_t scratch_bytes() const {
    return chunks_ * bytes_of_sums_ + tensors_.size() * bytes_of_rates_;
  }

  // Sets the addresses of everything that the step writes.
  void place(char* scratch, const Buffers& outputs);

  void launch(StepQueue& queue);

 private:
  struct Tensor {
    Position position;
    size_t first_chunk; // index among the step's chunks
  };

  void add_state(
      UpdateKernel kernel,
      const mx::array* const* operands,
      const Storages& results,
      const Extent& extent);
  void add_finish(
      UpdateKernel kernel,
      const mx::array* const* operands,
      const Storages& results,
      const Extent& extent);
  void add_finish_with_gradient(
      UpdateKernel kernel,
      const mx::array* const* operands,
      const Storages& results,
      const Extent& extent);
  void place_state(Share& share, char* scratch, const Buffers& outputs);
  void place_finish(Share& share, char* scratch, const Buffers& outputs);
  void launch_rates(StepQueue& queue);

  void* sums_of(size_t tensor, char* scratch) const {
    return scratch + tensors_[tensor].first_chunk * bytes_of_sums_;
  }
  void* rates_of(size_t tensor, char* scratch) const {
    return scratch + chunks_ * bytes_of_sums_ + tensor * bytes_of_rates_;
  }

  TwoPassInfo rule_;
  int fields_;            // of a tensor: the parameter and its slots
  size_t bytes_of_sums_;  // of a chunk
  size_t bytes_of_rates_; // of a tensor
  std::vector<Tensor> tensors_;
  size_t chunks_ = 0;
  Shares state_;
  Records rates_{1, 1}; // each tensor's chunks are the elements of its record
  RatesKernel rates_kernel_;
  CUfunction rates_function_ = nullptr;
  Shares finish_;
};

Tensors::Tensors(
    const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes)
    : rule_(two_pass_info(spec.rule)),
      fields_(info(spec.rule).slots + 1),
      bytes_of_sums_(rule_.sums * sizeof(double)),
      bytes_of_rates_(rule_.rates * sizeof(float)),
      rates_kernel_{info(spec.rule).name, 0} {
  UpdateKernel kernel{};
  kernel.rule = info(spec.rule).name;
  kernel.scaling = spec.scaling;
  kernel.clips = spec.clips_values;
  for_each_tensor(spec, inputs, [&](Position position, int operands, const Extent& extent) {
    const auto* arrays = &inputs[position.input];
    Storages results;
    for (int k = 0; k < operands - 1; ++k) {
      results.add(storage_of(dtypes[position.output + k]));
    }
    tensors_.push_back({position, chunks_});
    add_state(kernel, arrays, results, extent);
    if (rule_.reads_gradient_again) {
      add_finish_with_gradient(kernel, arrays, results, extent);
    } else {
      add_finish(kernel, arrays, results, extent);
    }
  });
}

void Tensors::add_state(
    UpdateKernel kernel,
    const mx::array* const* operands,
    const Storages& results,
    const Extent& extent) {
  const int fields = results.count();
  kernel.pass = Pass::state;
  kernel.sums = rule_.sums;
  for (int k = 0; k <= fields; ++k) {
    kernel.in.add(storage_of(operands[k]->dtype()));
  }
  for (int k = 1; k < fields && rule_.updates_state_first; ++k) {
    kernel.out.add(results[k]);
  }
  Share& share = add_with_gradient(state_, kernel, tensors_.size() - 1, extent, operands);
  const size_t index = share.records.count() - 1;
  for (int k = 0; k <= fields; ++k) {
    share.records.set_input(index, k, address<void>(*operands[k]));
  }
  Extent chunks{};
  chunks.size = chunks_of(share.kernel.walk, share.records[index]);
  chunks.group = extent.group;
  rates_.add(chunks);
  chunks_ += chunks.size;
}

// All operands but the parameter are results of the first pass. There is no gradient to scale.
void Tensors::add_finish(
    UpdateKernel kernel,
    const mx::array* const* operands,
    const Storages& results,
    const Extent& extent) {
  const mx::array& parameter = *operands[0];
  kernel.pass = Pass::finish;
  kernel.clips = false;
  kernel.scaling = kernel.scaling == Scaling::if_finite ? Scaling::if_finite : Scaling::none;
  kernel.walk = is_contiguous(parameter) ? Walk::flat : Walk::strided;
  kernel.in.add(storage_of(parameter.dtype()));
  for (int k = 1; k < results.count(); ++k) {
    kernel.in.add(results[k]);
  }
  kernel.out.add(results[0]);
  Share& share = finish_.add(kernel, tensors_.size() - 1, extent);
  if (kernel.walk == Walk::strided) {
    set_new_slots(share.layouts.emplace_back(layout_of<AnyLayout>(parameter)), kernel.in.count());
  }
  share.records.set_input(share.records.count() - 1, 0, address<void>(parameter));
}

// The slots are results of the first pass if that updates them.
void Tensors::add_finish_with_gradient(
    UpdateKernel kernel,
    const mx::array* const* operands,
    const Storages& results,
    const Extent& extent) {
  const int fields = results.count();
  const bool new_slots = rule_.updates_state_first;
  kernel.pass = Pass::finish_with_gradient;
  for (int k = 0; k <= fields; ++k) {
    const bool is_new = new_slots && k > 0 && k < fields;
    kernel.in.add(is_new ? results[k] : storage_of(operands[k]->dtype()));
  }
  for (int k = 0; k < (new_slots ? 1 : fields); ++k) {
    kernel.out.add(results[k]);
  }
  Share& share = add_with_gradient(finish_, kernel, tensors_.size() - 1, extent, operands);
  if (new_slots && share.kernel.walk == Walk::strided) {
    set_new_slots(share.layouts.back(), fields);
  }
  for (int k = 0; k <= fields; ++k) {
    share.records.set_input(share.records.count() - 1, k, address<void>(*operands[k]));
  }
}

void Tensors::find_functions(const mx::cu::Device& device) {
  state_.find_functions(device);
  rates_kernel_.capacity = table_capacity(rates_.bytes(), rates_.count(), device);
  rates_function_ = function(rates_kernel_, device);
  finish_.find_functions(device);
}

void Tensors::place(char* scratch, const Buffers& outputs) {
  for (Share& share : state_.all()) {
    place_state(share, scratch, outputs);
  }
  for (size_t t = 0; t < tensors_.size(); ++t) {
    rates_.set_input(t, 0, sums_of(t, scratch));
    rates_.set_output(t, 0, rates_of(t, scratch));
  }
  for (Share& share : finish_.all()) {
    place_finish(share, scratch, outputs);
  }
}

void Tensors::place_state(Share& share, char* scratch, const Buffers& outputs) {
  const int results = share.kernel.out.count();
  for (size_t i = 0; i < share.tensors.size(); ++i) {
    const size_t tensor = share.tensors[i];
    const size_t state = tensors_[tensor].position.output + 1;
    for (int k = 0; k < results; ++k) {
      share.records.set_output(i, k, address(outputs[state + k]));
    }
    share.records.set_output(i, results, sums_of(tensor, scratch));
  }
}

void Tensors::place_finish(Share& share, char* scratch, const Buffers& outputs) {
  for (size_t i = 0; i < share.tensors.size(); ++i) {
    const size_t tensor = share.tensors[i];
    const size_t first = tensors_[tensor].position.output;
    if (rule_.updates_state_first) {
      for (int k = 1; k < fields_; ++k) {
        share.records.set_input(i, k, address(outputs[first + k]));
      }
    }
    const int results = share.kernel.out.count();
    for (int k = 0; k < results; ++k) {
      share.records.set_output(i, k, address(outputs[first + k]));
    }
    share.records.set_output(i, results, rates_of(tensor, scratch));
  }
}

void Tensors::launch(StepQueue& queue) {
  queue.launch(state_);
  launch_rates(queue);
  queue.launch(finish_);
}

void Tensors::launch_rates(StepQueue& queue) {
  const size_t capacity = rates_kernel_.capacity;
  for (size_t begin = 0, end = 0; begin < rates_.count(); begin = end) {
    end = std::min(begin + capacity, rates_.count());
    const auto blocks = static_cast<unsigned>(end - begin);
    queue.launch(rates_function_, rates_, begin, end, blocks, rates_threads);
  }
}

class TwoPassStep : public Prepared {
 public:
  TwoPassStep(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream)
      : queue_(spec, stream),
        tensors_(spec, inputs, dtypes),
        scratch_(
            device_memory(std::max<size_t>(tensors_.scratch_bytes(), 1), stream), {1}, mx::uint8) {
    tensors_.find_functions(queue_.encoder().device());
    queue_.begin(spec, inputs);
    queue_.read_operands(spec, inputs);
  }

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override {
    tensors_.place(address<char>(scratch_), outputs);
    tensors_.launch(queue_);
    queue_.encoder().add_temporary(scratch_);
    queue_.end(std::move(keep_alive));
  }

 private:
  StepQueue queue_;
  Tensors tensors_;
  mx::array scratch_;
};

} // namespace

std::unique_ptr<Prepared> prepare_two_passes(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<TwoPassStep>(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::cuda
