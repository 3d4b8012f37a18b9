#include "mlx_opt/eager/in_place.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/eager/in_flight.h"
#include "mlx_opt/eager/merge.h"
#include "mlx_opt/graph/step_primitive.h"
#include "mlx_opt/graph/tracing.h"

namespace mlx_opt {
namespace {

// On a GPU, operands of this many bytes take longer to update than MLX takes to walk over them.
constexpr size_t large_operand = 1 << 20;

// A caller counts as one who waits once this many steps in a row found the GPU idle.
constexpr int sync_streak_to_trust = 3;

// The streak of a caller who was taken for such and was not.
constexpr int sync_penalty = 64;

// One kernel launch's worth of leaves.
struct Task {
  StepSpec spec;
  std::vector<mx::Dtype> dtypes;
  Pointers operands;
  Buffers overwritten;
  size_t scalars; // number of its scalar inputs
};

// What one evaluation runs.
struct Work {
  std::vector<Task> tasks;
  Start start;
  std::shared_ptr<InFlightStep> in_flight;
};

// The step as MLX evaluates it. Only the scalars are its inputs: the operands are ready, and what
// is not in the graph need not be walked. It is evaluated once.
class StepInPlace : public mx::Primitive {
 public:
  StepInPlace(mx::Stream stream, Work work) : mx::Primitive(stream), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    // A step that starts early reads its inputs' addresses when it is queued.
    std::vector<Pointers> all_inputs;
    all_inputs.reserve(work_.tasks.size());
    std::vector<std::unique_ptr<Prepared>> prepared;
    auto first = scalars.begin();
    for (Task& task : work_.tasks) {
      Pointers& inputs = all_inputs.emplace_back(std::move(task.operands));
      for (size_t i = 0; i < task.scalars; ++i) {
        inputs.push_back(&*first++);
      }
      prepared.push_back(prepare(task.spec, inputs, task.dtypes, stream(), work_.start));
    }
    outputs[0].set_data(mx::allocator::malloc(0));
    auto release = [in_flight = work_.in_flight](void*) { in_flight->release(); };
    const std::shared_ptr<void> keep(nullptr, std::move(release));
    for (size_t i = 0; i < prepared.size(); ++i) {
      prepared[i]->enqueue(work_.tasks[i].overwritten, keep);
    }
  }

  void eval_gpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    eval_cpu(scalars, outputs);
  }

  const char* name() const override {
    return "mlx_opt::StepInPlace";
  }

 private:
  Work work_;
};

// The operands of all parts, by what becomes of them.
struct Targets {
  Pointers overwritten;
  Pointers read;

  void add(const Leaves& leaves) {
    for (const Leaves::Kind& kind : leaves.kinds()) {
      for (auto next = kind.arrays.begin(); next != kind.arrays.end(); next += kind.operands) {
        overwritten.insert(overwritten.end(), next, next + kind.operands - 1);
        read.push_back(next[kind.operands - 1]);
      }
    }
  }
};

// True if all arrays may be overwritten by results of `dtypes`.
bool all_free(const Pointers& arrays, const std::vector<mx::Dtype>& dtypes, InFlightStep* last) {
  InFlightStep::Count count(last);
  for (size_t i = 0; i < arrays.size(); ++i) {
    const mx::array& x = *arrays[i];
    if (x.dtype() != dtypes[i] || !x.flags().row_contiguous || x.offset() != 0 ||
        !count.is_free(x, i)) {
      return false;
    }
  }
  return true;
}

std::vector<SharedData> data_of(const Pointers& arrays) {
  std::vector<SharedData> data;
  data.reserve(arrays.size());
  for (const mx::array* x : arrays) {
    data.push_back(x->data_shared_ptr());
  }
  return data;
}

bool is_traced(const Scalar& x) {
  auto* array = std::get_if<mx::array>(&x);
  return array && array->is_tracer();
}

bool is_traced(const Request& request) {
  if (request.scale && request.scale->value.is_tracer()) {
    return true;
  }
  return std::any_of(request.groups.begin(), request.groups.end(), [](const GroupScalars& group) {
    return group.learning_rate.is_tracer() || group.step.is_tracer() ||
           std::any_of(group.hypers.begin(), group.hypers.end(), [](const Scalar& x) {
             return is_traced(x);
           });
  });
}

// True if nothing is traced and everything is ready.
bool can_run(const Part& part, mx::Stream stream) {
  if (part.request.program->composition() || is_traced(part.request)) {
    return false;
  }
  for (const Leaves::Kind& kind : part.leaves.kinds()) {
    for (const mx::array* x : kind.arrays) {
      if (!is_ready(*x, stream)) {
        return false;
      }
    }
  }
  return true;
}

// True if a GPU is busy for longer than the host: while the host prepares a large step, and after
// that while MLX walks over the results.
bool outlasts_the_host(const Targets& targets, mx::Stream stream) {
  if (stream.device != mx::Device::gpu) {
    return false;
  }
  size_t bytes = 0;
  for (const Pointers* arrays : {&targets.overwritten, &targets.read}) {
    for (const mx::array* x : *arrays) {
      bytes += x->nbytes();
    }
  }
  return bytes / (targets.overwritten.size() + targets.read.size()) >= large_operand;
}

// Lowers the streak of a caller who does not wait after all. One who was left a lazy result and has
// not waited for it has attached an event to it, as async_eval alone does.
void lower_streak(InFlightStep& last, const mx::array& parameter) {
  if (last.lazy_result && last.lazy_result->event().valid()) {
    last.sync_streak = -sync_penalty;
  } else if (!parameter.is_available()) {
    last.sync_streak = 0;
  }
}

// The arrays have their new values once the token is available.
void mark_overwritten(const Pointers& arrays, const mx::array& token) {
  for (const mx::array* pointer : arrays) {
    auto& x = const_cast<mx::array&>(*pointer);
    x.set_status(mx::array::Status::evaluated);
    x.attach_event(token.event());
  }
}

} // namespace

bool run_in_place(
    std::vector<Part> parts, const std::vector<mx::array*>& counters, mx::Stream stream) {
  std::erase_if(parts, [](const Part& part) { return part.leaves.size() == 0; });
  for (const Part& part : parts) {
    if (!can_run(part, stream)) {
      return false;
    }
  }
  parts = merged(std::move(parts));
  Work work;
  Targets targets;
  std::vector<mx::array> scalars;
  std::vector<mx::Dtype> dtypes;
  for (const Part& part : parts) {
    CheckedStep checked = check(part.request, part.leaves);
    dtypes.insert(dtypes.end(), checked.dtypes.begin(), checked.dtypes.end());
    scalars.insert(scalars.end(), checked.scalars.begin(), checked.scalars.end());
    work.tasks.push_back(
        {std::move(checked.spec),
         std::move(checked.dtypes),
         part.leaves.operands(),
         {},
         checked.scalars.size()});
    targets.add(part.leaves);
  }
  if (targets.overwritten.empty()) {
    return false;
  }
  const mx::array& parameter = *targets.overwritten[0];
  const auto last = last_in_flight(stream);
  if (last) {
    lower_streak(*last, parameter);
  }
  if (!all_free(targets.overwritten, dtypes, last.get())) {
    return false;
  }
  auto next = targets.overwritten.begin();
  for (Task& task : work.tasks) {
    for (size_t i = 0; i < task.dtypes.size(); ++i) {
      task.overwritten.push_back(const_cast<mx::array&>(**next++).buffer());
    }
  }
  const bool idle = parameter.is_available() && outlasts_the_host(targets, stream);
  work.start = idle && work.tasks.size() == 1 ? Start::early : Start::whole;
  const auto in_flight =
      std::make_shared<InFlightStep>(data_of(targets.overwritten), data_of(targets.read));
  work.in_flight = in_flight;
  if (last && idle && gpu::find_backend().backend->has_costly_events()) {
    in_flight->sync_streak = last->sync_streak + 1;
  }
  auto primitive = std::make_shared<StepInPlace>(stream, std::move(work));
  const mx::array token(mx::Shape{}, mx::uint8, std::move(primitive), std::move(scalars));
  std::vector<mx::array> evaluated = {token};
  for (mx::array* counter : counters) {
    if (counter->status() == mx::array::Status::unscheduled) {
      evaluated.push_back(*counter);
    }
  }
  mx::async_eval(std::move(evaluated));
  if (last) {
    last->hand_over(*in_flight);
  }
  set_last_in_flight(stream, in_flight);
  mark_overwritten(targets.overwritten, token);
  if (in_flight->sync_streak >= sync_streak_to_trust && !counters.empty()) {
    *counters[0] = mx::stop_gradient(*counters[0], stream);
    in_flight->lazy_result = *counters[0];
  }
  return true;
}

bool release_lazy_result(mx::Stream stream) {
  const auto last = last_in_flight(stream);
  if (!last || !last->lazy_result) {
    return false;
  }
  last->lazy_result.reset();
  mx::synchronize(stream);
  return true;
}

void throttle(mx::Stream stream) {
  if (stream.device == mx::Device::gpu) {
    if (const auto* backend = gpu::find_backend().backend) {
      backend->wait_for_turn(stream);
    }
    return;
  }
  const auto last = last_in_flight(stream);
  if (last && last->is_pending()) {
    mx::synchronize(stream);
  }
}

} // namespace mlx_opt
