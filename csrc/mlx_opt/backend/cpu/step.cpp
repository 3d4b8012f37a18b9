#include "mlx_opt/backend/cpu/step.h"

#include <algorithm>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/kernel.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/layout.h"
#include "mlx_opt/plan.h"

namespace mlx_opt::cpu {
namespace {

// A chunk is long enough to pay for being handed out, and short enough that all threads end
// together.
constexpr int64_t shortest_chunk = 8192;
constexpr int64_t longest_chunk = 65536;
constexpr int64_t chunks_a_thread = 8;

struct OwnedLayout {
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  Layout view;
};

std::unique_ptr<OwnedLayout> merged_layout(const mx::array& x) {
  auto layout = std::make_unique<OwnedLayout>();
  auto& [shape, strides, view] = *layout;
  for (const Dimension& dimension : merged_dimensions(x)) {
    shape.push_back(dimension.size);
    strides.push_back(dimension.stride);
  }
  view = {shape.data(), strides.data(), static_cast<int>(shape.size())};
  return layout;
}

Storage storage_of(mx::Dtype dtype) {
  return dtype == mx::float32   ? Storage::float32
         : dtype == mx::float16 ? Storage::float16
                                : Storage::bfloat16;
}

using MLX_OPT_LEVEL::Hyper;

void* address(const mx::array& x) {
  return const_cast<void*>(static_cast<const void*>(x.data<char>()));
}

} // namespace

// Everything the task reads, gathered while the arrays are at hand. MLX keeps their buffers.
struct Step::Work {
  Schedule schedule;
  const Kernel* kernel;
  int threads;
  std::vector<Tensor> tensors;
  std::vector<Plan::Extent> extents;
  std::vector<std::unique_ptr<OwnedLayout>> layouts;
  const uint64_t* step;
  const float* learning_rate;
  std::vector<const float*> traced;
  std::shared_ptr<void> keep;

  void add_tensor(const mx::array* operands, const mx::Dtype* dtypes);
  void run() const;

 private:
  std::vector<Hyper> hypers() const;
};

void Step::Work::add_tensor(const mx::array* operands, const mx::Dtype* dtypes) {
  const int fields = info(schedule.rule).moments + 1;
  Tensor& tensor = tensors.emplace_back();
  for (int k = 0; k <= fields; ++k) {
    const mx::array& operand = operands[k];
    tensor.in[k] = {address(operand), storage_of(operand.dtype()), nullptr};
    if (!operand.flags().row_contiguous) {
      auto layout = merged_layout(operand);
      tensor.in[k].layout = layout->view.ndim ? &layout->view : nullptr;
      layouts.push_back(std::move(layout));
    }
  }
  for (int k = 0; k < fields; ++k) {
    tensor.out[k] = {nullptr, storage_of(dtypes[k]), nullptr};
  }
  const Operand& gradient = tensor.in[fields];
  const int64_t grain =
      is_transposed(gradient) ? transposed_rows * gradient.layout->shape[1] : Plan::alignment;
  extents.push_back({static_cast<int64_t>(operands->size()), grain});
}

std::vector<Hyper> Step::Work::hypers() const {
  std::vector<Hyper> hypers;
  for (double x : schedule.hypers) {
    hypers.push_back(derived(x));
  }
  for (size_t i = 0; i < traced.size(); ++i) {
    hypers[schedule.traced[i]] = derived(*traced[i]);
  }
  return hypers;
}

void Step::Work::run() const {
  const auto derived_hypers = hypers();
  const auto* h = reinterpret_cast<const float*>(derived_hypers.data());
  float scalars[max_scalars];
  kernel->prepare(h, *learning_rate, static_cast<float>(*step), scalars);

  int64_t total = 0;
  for (const auto& extent : extents) {
    total += extent.size;
  }
  const int64_t even = total / (chunks_a_thread * threads);
  const int64_t chunk = std::clamp(even, shortest_chunk, longest_chunk);
  const Plan plan(extents, chunk);
  parallel_for(plan.chunks(), [&](int64_t index) {
    plan.visit(index, [&](int64_t tensor, int64_t begin, int64_t end) {
      kernel->run(tensors[tensor], begin, end, h, scalars);
    });
  });
}

Step::Step(
    Schedule schedule, const std::vector<mx::array>& inputs, const std::vector<mx::Dtype>& dtypes)
    : work_(std::make_shared<Work>()) {
  work_->schedule = std::move(schedule);
  // Here, not when it runs, because these may throw.
  work_->kernel = &kernel(work_->schedule.rule);
  work_->threads = num_threads();
  const int fields = info(work_->schedule.rule).moments + 1;
  const size_t tensors = dtypes.size() / fields;
  work_->tensors.reserve(tensors);
  work_->extents.reserve(tensors);
  for (size_t t = 0; t < tensors; ++t) {
    work_->add_tensor(&inputs[t * (fields + 1)], &dtypes[t * fields]);
  }
  auto scalar = inputs.begin() + tensors * (fields + 1);
  work_->step = scalar++->data<uint64_t>();
  work_->learning_rate = scalar++->data<float>();
  for (; scalar != inputs.end(); ++scalar) {
    work_->traced.push_back(scalar->data<float>());
  }
}

void Step::enqueue(
    mx::Stream stream,
    const std::vector<mx::allocator::Buffer>& outputs,
    std::shared_ptr<void> keep) {
  auto output = outputs.begin();
  const int fields = info(work_->schedule.rule).moments + 1;
  for (Tensor& tensor : work_->tensors) {
    for (int k = 0; k < fields; ++k, ++output) {
      auto buffer = *output;
      tensor.out[k].data = buffer.raw_ptr();
    }
  }
  work_->keep = std::move(keep);
  mx::cpu::get_command_encoder(stream).dispatch([work = std::move(work_)] { work->run(); });
}

} // namespace mlx_opt::cpu
