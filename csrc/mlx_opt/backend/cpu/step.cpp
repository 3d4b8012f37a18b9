#include "mlx_opt/backend/cpu/step.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/plan.h"

namespace mlx_opt::cpu {
namespace {

// A chunk is long enough to pay for being handed out, and short enough that all threads end
// together.
constexpr int64_t shortest_chunk = 8192;
constexpr int64_t longest_chunk = 65536;
constexpr int64_t chunks_a_thread = 8;

using MLX_OPT_LEVEL::Hyper;

} // namespace

// Everything the task reads, gathered while the arrays are at hand. MLX keeps their buffers.
struct Step::Work {
  Schedule schedule;
  const Kernel* kernel;
  int threads;
  std::vector<Tensor> tensors;
  std::vector<Plan::Extent> extents;
  Operands operands;
  const uint64_t* step;
  const float* learning_rate;
  std::vector<const float*> traced;
  const float* scale = nullptr; // of the gradients, if there is one
  std::shared_ptr<void> keep;

  void add_tensor(const mx::array* arrays, const mx::Dtype* dtypes);
  void run() const;

 private:
  std::vector<Hyper> hypers() const;
  bool taken() const;
};

void Step::Work::add_tensor(const mx::array* arrays, const mx::Dtype* dtypes) {
  const int fields = info(schedule.rule).moments + 1;
  Tensor& tensor = tensors.emplace_back();
  for (int k = 0; k <= fields; ++k) {
    tensor.in[k] = operands.of(arrays[k]);
  }
  for (int k = 0; k < fields; ++k) {
    tensor.out[k] = {nullptr, storage_of(dtypes[k]), nullptr};
  }
  const Operand& gradient = tensor.in[fields];
  const int64_t grain =
      is_transposed(gradient) ? transposed_rows * gradient.layout->shape[1] : Plan::alignment;
  extents.push_back({static_cast<int64_t>(arrays->size()), grain});
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

bool Step::Work::taken() const {
  return schedule.scaling != Scaling::if_finite || std::isfinite(*scale);
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
  const bool update = taken();
  parallel_for(plan.chunks(), [&](int64_t index) {
    plan.visit(index, [&](int64_t tensor, int64_t begin, int64_t end) {
      if (update) {
        kernel->run(tensors[tensor], begin, end, h, scalars, scale);
      } else {
        kernel->keep(tensors[tensor], begin, end);
      }
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
  for (size_t i = 0; i < work_->schedule.traced.size(); ++i) {
    work_->traced.push_back(scalar++->data<float>());
  }
  if (work_->schedule.scaling != Scaling::none) {
    work_->scale = scalar->data<float>();
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
