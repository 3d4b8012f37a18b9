#include "mlx_opt/eager/in_place.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx_opt/algorithms/adafactor.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/eager/in_flight.h"
#include "mlx_opt/graph/check.h"
#include "mlx_opt/graph/step_primitive.h"
#include "mlx_opt/graph/tracing.h"

namespace mlx_opt {
namespace {

// Bytes an operand from which on a GPU takes longer to update it than MLX to walk over it.
constexpr size_t large_operand = 1 << 20;

// Steps in a row that found the GPU done, from which on the caller counts as one who waits.
constexpr int habit = 3;

// How many more it takes of one who was taken for such and was not.
constexpr int doubt = 64;

// Makes the step, its operands checked, and its scalars.
using Make = std::function<std::shared_ptr<TokenStep>(
    const Pointers&, const Given&, std::vector<mx::array>& scalars)>;

// The work of one evaluation, and its operands' buffers.
struct Work {
  std::shared_ptr<TokenStep> step;
  Start start;
  Pointers operands;
  Buffers overwritten;
  std::shared_ptr<Queued> queued;
};

// The step as MLX evaluates it. Only the scalars are its inputs: the operands are at hand, and what
// is not in the graph need not be walked. Its output is made to be evaluated, once.
class StepInPlace : public mx::Primitive {
 public:
  StepInPlace(mx::Stream stream, Work work) : mx::Primitive(stream), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    Pointers inputs = std::move(work_.operands);
    const Pointers read = pointers_to(scalars);
    inputs.insert(inputs.end(), read.begin(), read.end());
    auto prepared = work_.step->prepare(inputs, work_.start);
    outputs[0].set_data(mx::allocator::malloc(0));
    auto release = [queued = work_.queued](void*) { queued->release(); };
    prepared->enqueue(work_.overwritten, {nullptr, std::move(release)});
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

// Operands by what becomes of them.
struct Targets {
  Pointers overwritten;
  Pointers read;

  Targets(const Pointers& operands, const std::vector<Run>& runs) {
    overwritten.reserve(operands.size());
    read.reserve(operands.size());
    auto next = operands.begin();
    for (const auto& [tensors, width] : runs) {
      for (size_t t = 0; t < tensors; ++t) {
        overwritten.insert(overwritten.end(), next, next + width - 1);
        next += width;
        read.push_back(next[-1]);
      }
    }
  }
};

bool is_traced(const Scalar& x) {
  auto* array = std::get_if<mx::array>(&x);
  return array && array->is_tracer();
}

// Whether all arrays may be overwritten by results of `dtypes`.
bool all_free(const Pointers& arrays, const std::vector<mx::Dtype>& dtypes, Queued* last) {
  Queued::Count count(last);
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

Work make_work(
    std::shared_ptr<TokenStep> step,
    Start start,
    const Pointers& operands,
    const Targets& targets) {
  Work work{std::move(step), start, operands, {}, nullptr};
  work.overwritten.reserve(targets.overwritten.size());
  for (const mx::array* x : targets.overwritten) {
    work.overwritten.push_back(x->buffer());
  }
  work.queued = std::make_shared<Queued>(data_of(targets.overwritten), data_of(targets.read));
  return work;
}

// Whether nothing is traced and everything is at hand.
bool may_run(const Pointers& operands, const Given& given) {
  const auto at_hand = [&](const mx::array* x) { return is_at_hand(*x, given.stream); };
  return !operands.empty() && !given.learning_rate.is_tracer() && !given.step.is_tracer() &&
         !(given.scale && given.scale->value.is_tracer()) &&
         std::none_of(given.hypers.begin(), given.hypers.end(), is_traced) &&
         std::all_of(operands.begin(), operands.end(), at_hand);
}

// Whether a GPU is longer at work than the host: on what a large step needs of it, and after that
// on MLX's walk over the results.
bool outlasts_the_host(const Pointers& operands, mx::Stream stream) {
  if (stream.device != mx::Device::gpu) {
    return false;
  }
  size_t bytes = 0;
  for (const mx::array* x : operands) {
    bytes += x->nbytes();
  }
  return bytes / operands.size() >= large_operand;
}

// Takes back what counts for a caller who waits. One who was left an array and has not waited for
// it has it with an event, which async_eval alone attaches.
void reconsider(Queued& last, const mx::array& parameter) {
  if (last.left && last.left->event().valid()) {
    last.waits = -doubt;
  } else if (!parameter.is_available()) {
    last.waits = 0;
  }
}

// Queues the work; `last` leaves to it what it overwrites.
mx::array run(mx::Stream stream, Work work, std::vector<mx::array> scalars, Queued* last) {
  const auto queued = work.queued;
  auto update = std::make_shared<StepInPlace>(stream, std::move(work));
  mx::array token(mx::Shape{}, mx::uint8, std::move(update), std::move(scalars));
  mx::async_eval({token});
  if (last) {
    last->hand_over(*queued);
  }
  set_last_queued(stream, queued);
  return token;
}

// The arrays have their new values once the token is there.
void mark_overwritten(const Pointers& arrays, const mx::array& token) {
  for (const mx::array* x : arrays) {
    x->set_status(mx::array::Status::evaluated);
    x->attach_event(token.event());
  }
}

bool run_if_free(const Pointers& operands, const Given& given, mx::array& step, const Make& make) {
  if (!may_run(operands, given)) {
    return false;
  }
  std::vector<mx::array> scalars;
  auto update = make(operands, given, scalars);
  const Targets targets(operands, update->runs());
  const auto last = last_queued(given.stream);
  if (last) {
    reconsider(*last, *operands[0]);
  }
  if (!all_free(targets.overwritten, update->dtypes(), last.get())) {
    return false;
  }
  const bool idle = operands[0]->is_available() && outlasts_the_host(operands, given.stream);
  const Start start = idle ? Start::early : Start::whole;
  Work work = make_work(std::move(update), start, operands, targets);
  const auto queued = work.queued;
  if (last && idle && gpu::find_backend().backend->has_costly_events()) {
    queued->waits = last->waits + 1;
  }
  const mx::array token = run(given.stream, std::move(work), std::move(scalars), last.get());
  mark_overwritten(targets.overwritten, token);
  if (queued->waits >= habit) {
    step = mx::stop_gradient(step, given.stream);
    queued->left = step;
  }
  return true;
}

} // namespace

bool wait_for_holder(mx::Stream stream) {
  const auto last = last_queued(stream);
  if (!last || !last->left) {
    return false;
  }
  last->left.reset();
  mx::synchronize(stream);
  return true;
}

void wait_for_turn(mx::Stream stream) {
  if (stream.device == mx::Device::gpu) {
    if (const auto* backend = gpu::find_backend().backend) {
      backend->wait_for_turn(stream);
    }
    return;
  }
  const auto last = last_queued(stream);
  if (last && last->is_pending()) {
    mx::synchronize(stream);
  }
}

bool step_in_place(
    Rule rule,
    const std::vector<mx::array*>& operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  return run_if_free(
      {operands.begin(), operands.end()},
      {hypers, learning_rate, step, scale, mx::to_stream(s)},
      step,
      [&](const Pointers& arrays, const Given& given, std::vector<mx::array>& scalars) {
        return checked_step(rule, arrays, given, scalars);
      });
}

bool adafactor_in_place(
    const std::vector<mx::array*>& operands,
    size_t unfactored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  return run_if_free(
      {operands.begin(), operands.end()},
      {hypers, learning_rate, step, scale, mx::to_stream(s)},
      step,
      [&](const Pointers& arrays, const Given& given, std::vector<mx::array>& scalars) {
        return checked_adafactor(arrays, unfactored, first_moment, given, scalars);
      });
}

} // namespace mlx_opt
