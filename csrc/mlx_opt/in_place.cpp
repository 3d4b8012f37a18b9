#include "mlx_opt/in_place.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx_opt/arguments.h"
#include "mlx_opt/backend/cpu/step.h"
#include "mlx_opt/backend/gpu.h"
#include "mlx_opt/queued.h"

namespace mlx_opt {
namespace {

using Operands = std::vector<const mx::array*>;

// Bytes an operand from which on a GPU takes longer to update it than MLX to walk over it.
constexpr size_t large_operand = 1 << 20;

// Steps in a row that found the GPU done, from which on the caller counts as one who waits.
constexpr int habit = 3;

// How many more it takes of one who was taken for such and was not.
constexpr int doubt = 64;

// The work of one evaluation, and its operands' buffers.
struct Work {
  Schedule schedule;
  std::vector<mx::array> operands;
  std::vector<mx::Dtype> dtypes;
  std::vector<mx::allocator::Buffer> overwritten;
  std::shared_ptr<Queued> queued;
};

// The step as MLX evaluates it. Only the scalars are its inputs: the operands are at hand, and what
// is not in the graph need not be walked. Its output is made to be evaluated, once.
class UpdateInPlace : public mx::Primitive {
 public:
  UpdateInPlace(mx::Stream stream, Work work) : mx::Primitive(stream), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    cpu::Step step(work_.schedule, inputs(scalars), work_.dtypes);
    outputs[0].set_data(mx::allocator::malloc(0));
    step.enqueue(stream(), work_.overwritten, until_done());
  }

  void eval_gpu(const std::vector<mx::array>& scalars, std::vector<mx::array>& outputs) override {
    const auto* backend = gpu::find_backend().backend;
    auto step = backend->prepare(work_.schedule, inputs(scalars), work_.dtypes, stream());
    outputs[0].set_data(mx::allocator::malloc(0));
    step->enqueue(work_.overwritten, until_done());
  }

  const char* name() const override {
    return "mlx_opt::UpdateInPlace";
  }

 private:
  std::vector<mx::array> inputs(const std::vector<mx::array>& scalars) {
    auto inputs = std::move(work_.operands);
    inputs.insert(inputs.end(), scalars.begin(), scalars.end());
    return inputs;
  }

  std::shared_ptr<void> until_done() {
    auto release = [queued = work_.queued](void*) { queued->release(); };
    return {nullptr, std::move(release)};
  }

  Work work_;
};

// On a GPU the order of the stream is enough. On the CPU, where MLX may wait for tasks that are
// queued, and they for Python's lock, there must be none.
bool is_at_hand(const mx::array& x, mx::Stream stream) {
  if (x.status() == mx::array::Status::unscheduled || x.is_tracer()) {
    return false;
  }
  const bool in_order =
      stream.device == mx::Device::gpu && x.event().valid() && x.event().stream() == stream;
  return in_order || x.is_available();
}

bool is_traced(const Scalar& x) {
  auto* array = std::get_if<mx::array>(&x);
  return array && array->is_tracer();
}

// Whether every parameter and moment may be overwritten.
bool all_free(
    const Operands& operands, int fields, const std::vector<mx::Dtype>& dtypes, Queued* last) {
  Queued::Count count(last);
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const mx::array& x = *operands[i / fields * (fields + 1) + i % fields];
    if (x.dtype() != dtypes[i] || !x.flags().row_contiguous || x.offset() != 0 ||
        !count.is_free(x, i)) {
      return false;
    }
  }
  return true;
}

Work make_work(
    const Operands& operands, int fields, Schedule schedule, std::vector<mx::Dtype> dtypes) {
  Work work{std::move(schedule), {}, std::move(dtypes), {}, nullptr};
  work.operands.reserve(operands.size());
  work.overwritten.reserve(work.dtypes.size());
  std::vector<SharedData> overwritten, read;
  overwritten.reserve(work.dtypes.size());
  read.reserve(operands.size() - work.dtypes.size());
  for (size_t i = 0; i < operands.size(); ++i) {
    const mx::array& x = *operands[i];
    work.operands.push_back(x);
    if (static_cast<int>(i % (fields + 1)) == fields) {
      read.push_back(x.data_shared_ptr());
    } else {
      overwritten.push_back(x.data_shared_ptr());
      work.overwritten.push_back(x.buffer());
    }
  }
  work.queued = std::make_shared<Queued>(std::move(overwritten), std::move(read));
  return work;
}

// Whether nothing is traced and everything is at hand.
bool may_run(
    const Operands& operands,
    const std::vector<Scalar>& hypers,
    const std::vector<const mx::array*>& scalars,
    mx::Stream stream) {
  return !operands.empty() && std::none_of(hypers.begin(), hypers.end(), is_traced) &&
         std::none_of(
             scalars.begin(), scalars.end(), [](const mx::array* x) { return x->is_tracer(); }) &&
         std::all_of(operands.begin(), operands.end(), [&](const mx::array* x) {
           return is_at_hand(*x, stream);
         });
}

// Whether waiting for one array pays for a caller who waits: it does where the GPU is at work while
// MLX walks over the others.
bool pays_to_wait_once(const Operands& operands, mx::Stream stream) {
  if (stream.device != mx::Device::gpu || !gpu::find_backend().backend->has_costly_events()) {
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
  auto update = std::make_shared<UpdateInPlace>(stream, std::move(work));
  mx::array token(mx::Shape{}, mx::uint8, std::move(update), std::move(scalars));
  mx::async_eval({token});
  if (last) {
    last->hand_over(*queued);
  }
  set_last_queued(stream, queued);
  return token;
}

// The arrays have their new values once the token is there.
void mark_overwritten(const Operands& operands, int fields, const mx::array& token) {
  for (size_t i = 0; i < operands.size(); ++i) {
    if (static_cast<int>(i % (fields + 1)) < fields) {
      operands[i]->set_status(mx::array::Status::evaluated);
      operands[i]->attach_event(token.event());
    }
  }
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
  const Operands arrays(operands.begin(), operands.end());
  check_arguments(rule, arrays, hypers);
  const mx::Stream stream = mx::to_stream(s);
  std::vector<const mx::array*> given = {&learning_rate, &step};
  if (scale) {
    given.push_back(&scale->value);
  }
  if (!may_run(arrays, hypers, given, stream)) {
    return false;
  }
  const int fields = info(rule).moments + 1;
  auto dtypes = result_dtypes(rule, arrays, hypers);
  const auto last = last_queued(stream);
  if (last) {
    reconsider(*last, *arrays[0]);
  }
  if (!all_free(arrays, fields, dtypes, last.get())) {
    return false;
  }
  std::vector<mx::array> scalars;
  Schedule schedule{
      push_scalars(info(rule).name, hypers, learning_rate, step, scale, stream, scalars), rule};
  Work work = make_work(arrays, fields, std::move(schedule), std::move(dtypes));
  const auto queued = work.queued;
  if (last && arrays[0]->is_available() && pays_to_wait_once(arrays, stream)) {
    queued->waits = last->waits + 1;
  }
  const mx::array token = run(stream, std::move(work), std::move(scalars), last.get());
  mark_overwritten(arrays, fields, token);
  if (queued->waits >= habit) {
    step = mx::stop_gradient(step, stream);
    queued->left = step;
  }
  return true;
}

} // namespace mlx_opt
