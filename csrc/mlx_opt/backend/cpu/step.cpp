#include "mlx_opt/backend/cpu/step.h"

#include <algorithm>
#include <array>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/adafactor.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pieces.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/cpu/scalars.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/step/plan.h"

namespace mlx_opt::cpu {
namespace {

// A chunk is long enough to be worth handing to a thread, and short enough that all threads finish
// together.
constexpr int64_t shortest_chunk = 8192;
constexpr int64_t longest_chunk = 65536;
constexpr int64_t chunks_a_thread = 8;

// The maximum number of chunks of a step of two passes, unless a chunk would be longer than
// longest_chunk.
constexpr int64_t max_chunks = 256;

// The number of elements that are updated before their averages are, so that the weights are still
// in the first caches.
constexpr int64_t ema_block = 4096;

// The scalars that the tensors of a group share.
struct Group {
  std::vector<MLX_OPT_LEVEL::Hyper> hypers; // the last is the rate of the average if there is one
  float step;
  float scalars[max_scalars];

  const float* values() const {
    return reinterpret_cast<const float*>(hypers.data());
  }
};

using Rates = std::array<float, max_sums>;

// Everything that the task reads, collected while the arrays exist. MLX keeps their buffers.
struct StepTask {
  const Kernel* kernel;
  int slots; // of the rule
  bool has_ema;
  int threads;
  StepScalars scalars;
  std::vector<Operand> in = {};  // of all tensors, which point here
  std::vector<Operand> out = {}; // likewise, and one for each array of scales; their addresses are
                                 // set last
  std::vector<std::pair<size_t, size_t>> scales = {}; // of codes in `out`, that of their scales
  std::vector<Tensor> tensors = {};
  std::vector<Plan::Extent> extents = {};
  std::vector<uint16_t> groups = {}; // of each tensor; empty: all are in group 0
  Operands operands = {};
  std::shared_ptr<void> keep_alive = {};

  // `rounding_keys`: of the run's tensors; null if they are not rounded stochastically.
  void add_run(
      const TensorRun& run,
      const mx::array* const* arrays,
      const mx::Dtype* dtypes,
      const uint32_t* rounding_keys);
  void run() const;

 private:
  uint16_t group_of(size_t tensor) const {
    return groups.empty() ? 0 : groups[tensor];
  }

  std::vector<Group> prepare_groups() const;
  template <typename Visit>
  void visit(int64_t chunk, Visit&& visit) const;
  void update(const std::vector<Group>& prepared, int64_t total) const;
  void update_with_ema(size_t tensor, int64_t begin, int64_t end, const Group& group) const;
  void update_in_two_passes(const std::vector<Group>& prepared, int64_t total) const;
};

void StepTask::add_run(
    const TensorRun& run,
    const mx::array* const* arrays,
    const mx::Dtype* dtypes,
    const uint32_t* rounding_keys) {
  const int results = run.operands - 1;
  // The place of the gradient; a master and an average come behind it. Scales are with their codes.
  const int gradient = slots + 1;
  for (size_t t = 0; t < run.tensors; ++t, arrays += run.operands, dtypes += results) {
    Tensor& tensor = tensors.emplace_back();
    tensor = {in.data() + in.size(), out.data() + out.size(), run.masters, has_ema};
    tensor.has_codes = run.scales > 0;
    if (rounding_keys) {
      tensor.rounds = has_bfloat16(dtypes, results);
      tensor.rounding_key = rounding_keys[t];
    }
    int scale = results - run.scales;
    for (int k = 0; k < gradient; ++k) {
      Operand& operand = in.emplace_back(operands.of(*arrays[k]));
      if (is_coded(operand.storage)) {
        operand.scales = const_cast<float*>(arrays[scale]->data<float>());
        scales.emplace_back(out.size() + k, out.size() + scale++);
      }
    }
    in.push_back(operands.of(*arrays[results]));
    for (int k = gradient; k < results - run.scales; ++k) {
      in.push_back(operands.of(*arrays[k]));
    }
    for (int k = 0; k < results; ++k) {
      out.push_back({nullptr, storage_of(dtypes[k]), nullptr});
    }
    const Operand& g = tensor.in[gradient];
    const bool panels = has_panels(tensor, g);
    const int64_t grain = panels ? transposed_rows * g.layout->shape[1] : Plan::alignment;
    static_assert(Plan::alignment % coded_block == 0);
    extents.push_back({static_cast<int64_t>(arrays[0]->size()), grain});
  }
}

std::vector<Group> StepTask::prepare_groups() const {
  std::vector<Group> prepared;
  for (const GroupScalars& group : scalars.groups()) {
    Group& added = prepared.emplace_back(Group{group.hypers(), group.step(), {}});
    kernel->prepare(added.values(), group.learning_rate(), added.step, added.scalars);
  }
  return prepared;
}

void StepTask::run() const {
  int64_t total = 0;
  for (const auto& extent : extents) {
    total += extent.size;
  }
  if (!scalars.is_applied()) {
    visit(total / (chunks_a_thread * threads), [&](size_t tensor, int64_t begin, int64_t end) {
      kernel->copy_through(tensors[tensor], begin, end);
    });
    return;
  }
  const std::vector<Group> prepared = prepare_groups();
  if (kernel->run) {
    update(prepared, total);
  } else {
    update_in_two_passes(prepared, total);
  }
}

template <typename Visit>
void StepTask::visit(int64_t chunk, Visit&& visit) const {
  const Plan plan(extents, std::clamp(chunk, shortest_chunk, longest_chunk));
  parallel_for(plan.chunks(), [&](int64_t index) { plan.visit(index, visit); });
}

void StepTask::update(const std::vector<Group>& prepared, int64_t total) const {
  const Scale scale = scalars.scale();
  visit(total / (chunks_a_thread * threads), [&](size_t tensor, int64_t begin, int64_t end) {
    const Group& group = prepared[group_of(tensor)];
    if (has_ema) {
      update_with_ema(tensor, begin, end, group);
    } else {
      const Tensor& each = tensors[tensor];
      kernel->run(each, begin, end, group.values(), group.scalars, scale, group.step);
    }
  });
}

void StepTask::update_with_ema(
    size_t tensor, int64_t begin, int64_t end, const Group& group) const {
  const int64_t grain = extents[tensor].grain;
  const int64_t length = (ema_block + grain - 1) / grain * grain;
  for (; begin < end; begin += length) {
    const int64_t stop = std::min(begin + length, end);
    const Tensor& each = tensors[tensor];
    const Scale scale = scalars.scale();
    kernel->run(each, begin, stop, group.values(), group.scalars, scale, group.step);
    update_ema()(each, slots, begin, stop, group.hypers.back().value);
  }
}

void StepTask::update_in_two_passes(const std::vector<Group>& prepared, int64_t total) const {
  // The pieces do not depend on the number of threads, and so neither do the sums.
  const int64_t chunk = std::clamp(total / max_chunks, shortest_chunk, longest_chunk);
  Pieces pieces(Plan(extents, chunk));
  const Scale scale = scalars.scale();
  pieces.for_each([&](Piece& piece) {
    auto& [t, begin, end, sums] = piece;
    const Group& group = prepared[group_of(t)];
    kernel->sum(tensors[t], begin, end, group.values(), group.scalars, scale, sums.data());
  });
  std::vector<Rates> rates(tensors.size());
  const std::vector<Sums> sums = pieces.sums(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    const Group& group = prepared[group_of(t)];
    kernel->rates(sums[t].data(), group.values(), group.scalars, rates[t].data());
  }
  pieces.for_each([&](const Piece& piece) {
    const auto& [t, begin, end, _] = piece;
    const Group& group = prepared[group_of(t)];
    kernel->finish(tensors[t], begin, end, group.values(), group.scalars, scale, rates[t].data());
  });
}

class Step : public Prepared {
 public:
  Step(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      LaunchMode mode)
      : stream_(stream), on_calling_thread_(mode == LaunchMode::on_calling_thread) {
    const size_t operands = spec.operand_count();
    // Finding the kernel and starting the threads may throw, so both happen here and not in the
    // task.
    task_ = std::make_shared<StepTask>(StepTask{
        &kernel(spec.rule),
        info(spec.rule).slots,
        spec.has_ema,
        num_threads(),
        StepScalars(spec, inputs.data() + operands)});
    task_->groups = spec.groups;
    // The tensors point into these.
    task_->in.reserve(operands);
    task_->out.reserve(dtypes.size());
    task_->tensors.reserve(operands - dtypes.size());
    task_->extents.reserve(operands - dtypes.size());
    auto arrays = inputs.data();
    auto results = dtypes.data();
    const uint32_t* keys = spec.rounds() ? spec.rounding_keys.data() : nullptr;
    for (const TensorRun& run : spec.runs) {
      task_->add_run(run, arrays, results, keys);
      keys += keys ? run.tensors : 0;
      arrays += run.tensors * run.operands;
      results += run.tensors * (run.operands - 1);
    }
  }

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override {
    for (size_t i = 0; i < task_->out.size(); ++i) {
      auto buffer = outputs[i];
      task_->out[i].data = buffer.raw_ptr();
    }
    for (const auto& [codes, scale] : task_->scales) {
      task_->out[codes].scales = static_cast<float*>(task_->out[scale].data);
    }
    task_->keep_alive = std::move(keep_alive);
    if (on_calling_thread_) {
      task_->run();
      return;
    }
    mx::cpu::get_command_encoder(stream_).dispatch([work = std::move(task_)] { work->run(); });
  }

 private:
  mx::Stream stream_;
  bool on_calling_thread_;
  std::shared_ptr<StepTask> task_;
};

} // namespace

std::unique_ptr<Prepared> prepare(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode) {
  if (spec.rule == Rule::Adafactor) {
    return prepare_adafactor(spec, inputs, dtypes, stream, mode);
  }
  return std::make_unique<Step>(spec, inputs, dtypes, stream, mode);
}

} // namespace mlx_opt::cpu
