#include "mlx_opt/eager/in_place.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx_opt/eager/accesses.h"
#include "mlx_opt/eager/in_flight.h"
#include "mlx_opt/eager/merge.h"
#include "mlx_opt/eager/pacing.h"
#include "mlx_opt/graph/small_step.h"
#include "mlx_opt/graph/step_primitive.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {
namespace {

// The leaves of one StepSpec.
struct Task {
  StepSpec spec;
  std::vector<mx::Dtype> dtypes;
  ArrayRefs operands;
  Buffers written; // the overwritten ones, then that of the norms
  size_t scalars;  // number of its scalar inputs
};

// The work of one evaluation.
struct InPlaceTasks {
  std::vector<Task> tasks;
  LaunchMode mode;
  std::shared_ptr<InFlightStep> in_flight;
};

// Everything that can fail comes before the first task is queued.
void enqueue(
    std::vector<Task>& tasks,
    const std::vector<mx::array>& scalars,
    mx::Stream stream,
    LaunchMode mode,
    const std::shared_ptr<void>& keep_alive) {
  // A split launch reads the addresses of its inputs when it is queued.
  std::vector<ArrayRefs> all_inputs;
  all_inputs.reserve(tasks.size());
  std::vector<std::unique_ptr<Prepared>> prepared;
  auto first = scalars.begin();
  for (Task& task : tasks) {
    ArrayRefs& inputs = all_inputs.emplace_back(std::move(task.operands));
    for (size_t i = 0; i < task.scalars; ++i) {
      inputs.push_back(&*first++);
    }
    prepared.push_back(prepare(task.spec, inputs, task.dtypes, stream, mode));
  }
  for (size_t i = 0; i < prepared.size(); ++i) {
    prepared[i]->enqueue(tasks[i].written, keep_alive);
  }
}

// The primitive that MLX evaluates. Only the scalars are its inputs: the operands are ready, and
// MLX need not walk them. It is evaluated once.
class InPlacePrimitive : public mx::Primitive {
 public:
  InPlacePrimitive(mx::Stream stream, InPlaceTasks work)
      : mx::Primitive(stream), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    set_data(outputs[0], new_data(0));
    auto release = [in_flight = work_.in_flight](void*) { in_flight->release(); };
    const std::shared_ptr<void> keep_alive(nullptr, std::move(release));
    enqueue(work_.tasks, scalars, stream(), work_.mode, keep_alive);
  }

  void eval_gpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    eval_cpu(scalars, outputs);
  }

  const char* name() const override {
    return "mlx_opt::InPlacePrimitive";
  }

 private:
  InPlaceTasks work_;
};

// True if all arrays can be overwritten by results of `dtypes`.
bool all_free(const ArrayRefs& arrays, const std::vector<mx::Dtype>& dtypes, InFlightStep* last) {
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

std::vector<SharedData> data_of(const ArrayRefs& arrays) {
  std::vector<SharedData> data;
  data.reserve(arrays.size());
  for (const mx::array* x : arrays) {
    data.push_back(x->data_shared_ptr());
  }
  return data;
}

// Evaluated, without a value yet.
mx::array new_norms(size_t groups) {
  const mx::Shape shape{static_cast<int>(groups), 2};
  return array_from(new_data(2 * groups * sizeof(float)), shape, mx::float32);
}

bool is_traced(const Scalar& x) {
  auto* array = std::get_if<mx::array>(&x);
  return array && array->is_tracer();
}

bool is_traced(const Request& request) {
  const auto& scale = request.scale;
  if (scale && (scale->value.is_tracer() || (scale->max_value && scale->max_value->is_tracer()))) {
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
  if (!part.request.program->is_fused() || is_traced(part.request)) {
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

// True if the step is small enough to run on the calling thread, and no pending task writes what it
// reads or writes. Rules with drivers of their own take longer for a tensor than waking a thread
// does.
bool runs_at_once(
    const std::vector<Task>& tasks,
    const Accesses& accesses,
    const std::vector<mx::array>& scalars,
    InFlightStep* last,
    mx::Stream stream) {
  if (stream.device != mx::Device::cpu || (last && last->is_pending()) ||
      !std::all_of(scalars.begin(), scalars.end(), is_evaluated)) {
    return false;
  }
  const bool short_tensors = std::all_of(tasks.begin(), tasks.end(), [](const Task& task) {
    return is_elementwise(task.spec.rule) || has_two_passes(task.spec.rule);
  });
  size_t elements = 0;
  for (const mx::array* x : accesses.read) {
    elements += x->size();
  }
  return short_tensors && elements <= small_step();
}

void evaluate_lazy(const std::vector<mx::array*>& counters, std::vector<mx::array> with) {
  for (mx::array* counter : counters) {
    if (counter->status() == mx::array::Status::unscheduled) {
      with.push_back(*counter);
    }
  }
  if (!with.empty()) {
    mx::async_eval(std::move(with));
  }
}

// The arrays have their new values once the token is available.
void mark_written(const ArrayRefs& arrays, const mx::array& token) {
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
  MergedParts shared = merged(std::move(parts));
  InPlaceTasks work;
  Accesses accesses;
  std::vector<mx::array> scalars;
  std::vector<mx::Dtype> dtypes;
  for (const Part& part : shared.parts) {
    CheckedStep checked = check(part.request, part.leaves);
    dtypes.insert(dtypes.end(), checked.dtypes.begin(), checked.dtypes.end());
    scalars.insert(scalars.end(), checked.scalars.begin(), checked.scalars.end());
    work.tasks.push_back(
        {std::move(checked.spec),
         std::move(checked.dtypes),
         part.leaves.operands(),
         {},
         checked.scalars.size()});
    accesses.add(part.leaves);
  }
  if (accesses.overwritten.empty()) {
    return false;
  }
  const mx::array& parameter = *accesses.overwritten[0];
  const auto last = last_in_flight(stream);
  if (last) {
    lower_streak(*last, parameter);
  }
  if (!all_free(accesses.overwritten, dtypes, last.get())) {
    return false;
  }
  auto next = accesses.overwritten.begin();
  ArrayRefs results = accesses.overwritten;
  for (size_t k = 0; k < work.tasks.size(); ++k) {
    Task& task = work.tasks[k];
    task.written.reserve(task.dtypes.size() + 1);
    for (size_t i = 0; i < task.dtypes.size(); ++i) {
      task.written.push_back(const_cast<mx::array&>(**next++).buffer());
    }
    if (task.spec.takes_norms) {
      mx::array& norms = shared.shared_norms[k];
      norms = new_norms(task.spec.sources.size());
      task.written.push_back(norms.buffer());
      results.push_back(&norms);
    }
  }
  if (runs_at_once(work.tasks, accesses, scalars, last.get(), stream)) {
    enqueue(work.tasks, scalars, stream, LaunchMode::on_calling_thread, nullptr);
    evaluate_lazy(counters, {});
    shared.give_norms();
    return true;
  }
  const bool idle = parameter.is_available() && outlasts_the_host(accesses, stream);
  work.mode = idle && work.tasks.size() == 1 ? LaunchMode::split : LaunchMode::whole;
  const auto in_flight = std::make_shared<InFlightStep>(data_of(results), data_of(accesses.read));
  work.in_flight = in_flight;
  continue_streak(last.get(), *in_flight, idle);
  auto primitive = std::make_shared<InPlacePrimitive>(stream, std::move(work));
  const mx::array token(mx::Shape{}, mx::uint8, std::move(primitive), std::move(scalars));
  evaluate_lazy(counters, {token});
  if (last) {
    last->hand_over(*in_flight);
  }
  set_last_in_flight(stream, in_flight);
  mark_written(results, token);
  shared.give_norms();
  if (is_waited_for(*in_flight) && !counters.empty()) {
    *counters[0] = mx::stop_gradient(*counters[0], stream);
    in_flight->lazy_result = *counters[0];
  }
  return true;
}

} // namespace mlx_opt
