#include "mlx_opt/backend/cpu/step.h"

#include <algorithm>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/adafactor.h"
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

// Everything the task reads, gathered while the arrays exist. MLX keeps their buffers.
struct Work {
  int fields; // of a tensor: the parameter and its moments
  const Kernel* kernel;
  int threads;
  bool scaled;
  StepScalars scalars;
  std::vector<Tensor> tensors = {};
  std::vector<Plan::Extent> extents = {};
  std::vector<uint16_t> groups = {}; // of each tensor; empty: all are in group 0
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
  struct Group {
    std::vector<MLX_OPT_LEVEL::Hyper> hypers;
    float scalars[max_scalars];
  };
  std::vector<Group> prepared;
  for (const GroupScalars& group : scalars.groups()) {
    Group& added = prepared.emplace_back(Group{group.hypers(), {}});
    const auto* h = reinterpret_cast<const float*>(added.hypers.data());
    kernel->prepare(h, group.learning_rate(), group.step(), added.scalars);
  }

  int64_t total = 0;
  for (const auto& extent : extents) {
    total += extent.size;
  }
  const int64_t even = total / (chunks_a_thread * threads);
  const int64_t chunk = std::clamp(even, shortest_chunk, longest_chunk);
  const Plan plan(extents, chunk);
  const bool applied = scalars.is_applied();
  const float scale = scalars.scale();
  parallel_for(plan.chunks(), [&](int64_t index) {
    plan.visit(index, [&](int64_t tensor, int64_t begin, int64_t end) {
      if (!applied) {
        kernel->keep(tensors[tensor], begin, end);
        return;
      }
      const Group& group = prepared[groups.empty() ? 0 : groups[tensor]];
      const auto* h = reinterpret_cast<const float*>(group.hypers.data());
      kernel->run(tensors[tensor], begin, end, h, group.scalars, scaled ? &scale : nullptr);
    });
  });
}

class Step : public Prepared {
 public:
  Step(
      const StepSpec& spec,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream)
      : stream_(stream) {
    const auto [tensors, width] = spec.runs.at(0);
    const int fields = width - 1;
    // Finding the kernel and the threads may throw, so it is done here and not when they run.
    work_ = std::make_shared<Work>(Work{
        fields,
        &kernel(spec.rule),
        num_threads(),
        spec.scaling != Scaling::none,
        StepScalars(spec, &inputs[tensors * width])});
    work_->groups = spec.groups;
    work_->tensors.reserve(tensors);
    work_->extents.reserve(tensors);
    for (size_t t = 0; t < tensors; ++t) {
      work_->add_tensor(&inputs[t * width], &dtypes[t * fields]);
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
    const StepSpec& spec,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  if (is_elementwise(spec.rule)) {
    return std::make_unique<Step>(spec, inputs, dtypes, stream);
  }
  return prepare_adafactor(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::cpu
