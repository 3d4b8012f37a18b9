#include "mlx_opt/backend/cpu/step.h"

#include <algorithm>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/cpu/scalars.h"
#include "mlx_opt/step/plan.h"

namespace mlx_opt::cpu {
namespace {

// A chunk is long enough to pay for being handed out, and short enough that all threads end
// together.
constexpr int64_t shortest_chunk = 8192;
constexpr int64_t longest_chunk = 65536;
constexpr int64_t chunks_a_thread = 8;

// Everything the task reads, gathered while the arrays are at hand. MLX keeps their buffers.
struct Work {
  int fields; // of a tensor: the parameter and its moments
  const Kernel* kernel;
  int threads;
  ScalarInputs scalars;
  std::vector<Tensor> tensors = {};
  std::vector<Plan::Extent> extents = {};
  Operands operands = {};
  std::shared_ptr<void> keep = {};

  void add_tensor(const mx::array* const* arrays, const mx::Dtype* dtypes);
  void run() const;
};

void Work::add_tensor(const mx::array* const* arrays, const mx::Dtype* dtypes) {
  Tensor& tensor = tensors.emplace_back();
  for (int k = 0; k <= fields; ++k) {
    tensor.in[k] = operands.of(*arrays[k]);
  }
  for (int k = 0; k < fields; ++k) {
    tensor.out[k] = {nullptr, storage_of(dtypes[k]), nullptr};
  }
  const Operand& gradient = tensor.in[fields];
  const int64_t grain =
      is_transposed(gradient) ? transposed_rows * gradient.layout->shape[1] : Plan::alignment;
  extents.push_back({static_cast<int64_t>(arrays[0]->size()), grain});
}

void Work::run() const {
  const auto hypers = scalars.hypers();
  const auto* h = reinterpret_cast<const float*>(hypers.data());
  float prepared[max_scalars];
  kernel->prepare(h, scalars.learning_rate(), scalars.step(), prepared);

  int64_t total = 0;
  for (const auto& extent : extents) {
    total += extent.size;
  }
  const int64_t even = total / (chunks_a_thread * threads);
  const int64_t chunk = std::clamp(even, shortest_chunk, longest_chunk);
  const Plan plan(extents, chunk);
  const bool taken = scalars.taken();
  parallel_for(plan.chunks(), [&](int64_t index) {
    plan.visit(index, [&](int64_t tensor, int64_t begin, int64_t end) {
      if (taken) {
        kernel->run(tensors[tensor], begin, end, h, prepared, scalars.scale());
      } else {
        kernel->keep(tensors[tensor], begin, end);
      }
    });
  });
}

class Step : public Prepared {
 public:
  Step(
      const Schedule& schedule,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream)
      : stream_(stream) {
    const int fields = info(schedule.rule).moments + 1;
    const size_t tensors = dtypes.size() / fields;
    // The kernel and the threads here, not when it runs, because finding them may throw.
    work_ = std::make_shared<Work>(Work{
        fields,
        &kernel(schedule.rule),
        num_threads(),
        ScalarInputs(schedule, &inputs[tensors * (fields + 1)])});
    work_->tensors.reserve(tensors);
    work_->extents.reserve(tensors);
    for (size_t t = 0; t < tensors; ++t) {
      work_->add_tensor(&inputs[t * (fields + 1)], &dtypes[t * fields]);
    }
  }

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override {
    auto output = outputs.begin();
    for (Tensor& tensor : work_->tensors) {
      for (int k = 0; k < work_->fields; ++k, ++output) {
        auto buffer = *output;
        tensor.out[k].data = buffer.raw_ptr();
      }
    }
    work_->keep = std::move(keep);
    mx::cpu::get_command_encoder(stream_).dispatch([work = std::move(work_)] { work->run(); });
  }

 private:
  mx::Stream stream_;
  std::shared_ptr<Work> work_;
};

} // namespace

std::unique_ptr<Prepared> prepare(
    const Schedule& schedule,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<Step>(schedule, inputs, dtypes, stream);
}

} // namespace mlx_opt::cpu
