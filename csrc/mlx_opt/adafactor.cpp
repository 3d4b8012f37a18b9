#include "mlx_opt/adafactor.h"

#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "mlx_opt/arguments.h"
#include "mlx_opt/backend/cpu/adafactor.h"
#include "mlx_opt/backend/gpu.h"
#include "mlx_opt/donation.h"
#include "mlx_opt/rules/adafactor.h"

namespace mlx_opt {
namespace {

constexpr std::string_view name = "Adafactor";
constexpr size_t hyper_count =
    sizeof(MLX_OPT_LEVEL::Adafactor::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper);

void check(const mx::array* operands, size_t tensor, bool factored, bool first_moment) {
  const mx::Shape& shape = operands->shape();
  if (factored && shape.size() < 2) {
    refuse(name, "tensor " + std::to_string(tensor) + " has fewer than two dimensions");
  }
  std::vector<mx::Shape> expected = {shape};
  if (factored) {
    expected.emplace_back(shape.begin(), shape.end() - 1);
    expected.emplace_back(shape.begin(), shape.end() - 2);
    expected.back().push_back(shape.back());
  } else {
    expected.push_back(shape);
  }
  expected.insert(expected.end(), 1 + first_moment, shape);
  for (size_t k = 0; k < expected.size(); ++k) {
    if (operands[k].shape() != expected[k]) {
      refuse(
          name,
          "operand " + std::to_string(k) + " of tensor " + std::to_string(tensor) + " has shape " +
              shape_text(operands[k].shape()) + ", expected " + shape_text(expected[k]));
    }
    if (!is_storage(operands[k].dtype())) {
      refuse(name, "operands must be float32, float16 or bfloat16");
    }
  }
}

// The dtypes of a tensor's results, as stock's formula promotes them.
void push_dtypes(
    const mx::array* operands, bool factored, bool first_moment, std::vector<mx::Dtype>& dtypes) {
  const int fields = 2 + factored + first_moment;
  const mx::Dtype both = mx::promote_types(operands[0].dtype(), operands[fields].dtype());
  const size_t parameter = dtypes.size();
  dtypes.push_back(both);
  for (int k = 1; k < fields; ++k) {
    const mx::Dtype other = k == fields - 1 && first_moment ? dtypes[parameter] : both;
    dtypes.push_back(mx::promote_types(operands[k].dtype(), other));
    dtypes[parameter] = mx::promote_types(dtypes[parameter], dtypes.back());
  }
}

} // namespace

bool has_adafactor(mx::Device device) {
  const auto* backend = gpu::find_backend().backend;
  return device == mx::Device::cpu || (backend && backend->has_adafactor());
}

std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    size_t unfactored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  Factoring factoring{unfactored, 0, first_moment};
  const size_t first_factored = unfactored * factoring.operands(false);
  const size_t width = factoring.operands(true);
  if (operands.size() < first_factored || (operands.size() - first_factored) % width) {
    refuse(
        name,
        "expected " + std::to_string(width) + " operands a factored tensor, of others one fewer");
  }
  factoring.factored = (operands.size() - first_factored) / width;
  if (hypers.size() != hyper_count) {
    refuse(name, "expected " + std::to_string(hyper_count) + " hyperparameters");
  }
  if (operands.empty()) {
    return {};
  }
  const mx::Stream stream = mx::to_stream(s);
  if (!has_adafactor(stream.device)) {
    refuse(name, "there is no kernel for this device");
  }
  std::vector<mx::Dtype> dtypes;
  dtypes.reserve(operands.size());
  const mx::array* tensor = operands.data();
  for (size_t i = 0; i < unfactored + factoring.factored; ++i) {
    const bool factored = i >= unfactored;
    check(tensor, i, factored, first_moment);
    push_dtypes(tensor, factored, first_moment, dtypes);
    tensor += factoring.operands(factored);
  }
  auto sources = push_scalars(name, hypers, learning_rate, step, scale, stream, operands);
  auto update =
      std::make_shared<AdafactorUpdate>(stream, std::move(sources), factoring, std::move(dtypes));
  return take_all(token_of(std::move(update), std::move(operands)));
}

void AdafactorUpdate::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  release_held_buffers(stream(), inputs, runs());
  cpu::AdafactorStep step(sources_, factoring_, inputs, dtypes());
  Handoff placed = place_outputs(
      inputs, runs(), dtypes(), [](size_t bytes) { return mx::allocator::malloc(bytes); });
  const Handoff& held = hand_over(std::move(placed), outputs[0]);
  step.enqueue(stream(), held.written(), outputs[0].data_shared_ptr());
}

void AdafactorUpdate::eval_gpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto* backend = gpu::find_backend().backend;
  auto step = backend->prepare_adafactor(sources_, factoring_, inputs, dtypes(), stream());
  Handoff placed = place_outputs(
      inputs, runs(), dtypes(), [&](size_t bytes) { return backend->allocate(bytes, stream()); });
  const Handoff& held = hand_over(std::move(placed), outputs[0]);
  step->enqueue(held.written(), outputs[0].data_shared_ptr());
}

std::shared_ptr<TokenStep> AdafactorUpdate::again() const {
  auto stream = const_cast<AdafactorUpdate*>(this)->stream();
  return std::make_shared<AdafactorUpdate>(stream, sources_, factoring_, dtypes());
}

} // namespace mlx_opt
