#include "mlx_opt/backend/cpu/adafactor.h"

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/adafactor_passes.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/cpu/scalars.h"
#include "mlx_opt/rules/adafactor.h"

namespace mlx_opt::cpu {
namespace {

using Rule = MLX_OPT_LEVEL::Adafactor;

struct AdafactorTask {
  const AdafactorKernel& kernel;
  bool first_moment;
  StepScalars scalars;
  std::vector<Item> items = {};
  Operands operands = {};
  std::shared_ptr<void> keep_alive = {};

  void add(const mx::array* const* arrays, const mx::Dtype* dtypes, bool factored, uint16_t group);
  void place(Item& item, const mx::allocator::Buffer* buffers);
  void run();
  void copy_all(const Item& item) const;
};

// `arrays`: the parameter; the running means of rows and columns, or of elements; the first moment,
// if there is one; the gradient.
void AdafactorTask::add(
    const mx::array* const* arrays, const mx::Dtype* dtypes, bool factored, uint16_t group) {
  const mx::array& w = **arrays;
  Item& item = items.emplace_back();
  item.factored = factored;
  item.group = group;
  AdafactorTensor& t = item.tensor;
  t.columns = factored ? w.shape(-1) : static_cast<int64_t>(w.size());
  t.rows = factored ? w.shape(-2) : 1;
  const int64_t each = t.rows * t.columns;
  t.matrices = each ? static_cast<int64_t>(w.size()) / each : 0;
  auto take = [&](Operand& in, Operand& out) {
    in = operands.of(**arrays++);
    out = {nullptr, storage_of(*dtypes++), nullptr};
  };
  take(t.w, t.w_out);
  if (factored) {
    item.row_size = static_cast<int64_t>(arrays[0]->size());
    item.column_size = static_cast<int64_t>(arrays[1]->size());
    take(item.row, item.row_out);
    take(item.column, item.column_out);
  } else {
    take(t.v, t.v_out);
  }
  if (first_moment) {
    take(t.m, t.m_out);
  }
  t.g = operands.of(**arrays);
}

void AdafactorTask::place(Item& item, const mx::allocator::Buffer* buffers) {
  auto take = [&](Operand& out) {
    auto buffer = *buffers++;
    out.data = buffer.raw_ptr();
  };
  take(item.tensor.w_out);
  if (item.factored) {
    take(item.row_out);
    take(item.column_out);
  } else {
    take(item.tensor.v_out);
  }
  if (first_moment) {
    take(item.tensor.m_out);
  }
}

void AdafactorTask::copy_all(const Item& item) const {
  const AdafactorTensor& t = item.tensor;
  auto copy = [&](const Operand& from, const Operand& to, int64_t size) {
    if (size && from.data != to.data) {
      kernel.copy(from, to, 0, size);
    }
  };
  copy(t.w, t.w_out, item.size());
  copy(t.m, t.m_out, first_moment ? item.size() : 0);
  copy(t.v, t.v_out, item.factored ? 0 : item.size());
  copy(item.row, item.row_out, item.row_size);
  copy(item.column, item.column_out, item.column_size);
}

void AdafactorTask::run() {
  if (!scalars.is_applied()) {
    parallel_for(items.size(), [&](int64_t i) { copy_all(items[i]); });
    return;
  }
  struct Prepared {
    std::vector<MLX_OPT_LEVEL::Hyper> hypers;
    float scalars[sizeof(Rule::Scalars) / sizeof(float)];
  };
  std::vector<Prepared> groups;
  for (const GroupScalars& group : scalars.groups()) {
    auto& [hypers, prepared] = groups.emplace_back(Prepared{group.hypers(), {}});
    const auto* h = reinterpret_cast<const float*>(hypers.data());
    kernel.prepare(h, group.learning_rate(), group.step(), prepared);
  }
  for (Item& item : items) {
    item.hypers = reinterpret_cast<const float*>(groups[item.group].hypers.data());
    item.scalars = groups[item.group].scalars;
    if (item.size() == 0) {
      copy_all(item);
    }
  }
  Passes(kernel, scalars.scale()).run(items);
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
    const auto& [vectors, matrices] = std::pair(spec.runs.at(0), spec.runs.at(1));
    const bool first_moment = vectors.operands == 4;
    // Finding the kernel and starting the threads may throw, so both happen here and not in the
    // task.
    num_threads();
    task_ = std::make_shared<AdafactorTask>(AdafactorTask{
        adafactor_kernel(), first_moment, StepScalars(spec, &inputs[spec.operand_count()])});
    const mx::array* const* operands = inputs.data();
    const mx::Dtype* results = dtypes.data();
    size_t tensor = 0;
    for (const TensorRun& run : {vectors, matrices}) {
      for (size_t t = 0; t < run.tensors; ++t, ++tensor) {
        const bool factored = run.operands == matrices.operands;
        task_->add(operands, results, factored, spec.group_of(tensor));
        operands += run.operands;
        results += run.operands - 1;
      }
    }
  }

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override {
    const auto* buffers = outputs.data();
    for (Item& item : task_->items) {
      task_->place(item, buffers);
      buffers += 2 + item.factored + task_->first_moment;
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
  std::shared_ptr<AdafactorTask> task_;
};

} // namespace

std::unique_ptr<Prepared> prepare_adafactor(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode) {
  return std::make_unique<Step>(spec, inputs, dtypes, stream, mode);
}

} // namespace mlx_opt::cpu
