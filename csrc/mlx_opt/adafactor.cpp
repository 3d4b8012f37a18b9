#include "mlx_opt/adafactor.h"

#include <algorithm>
#include <stdexcept>

#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "mlx_opt/arguments.h"
#include "mlx_opt/backend/cpu/adafactor.h"
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

std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    bool factored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  const size_t width = 3 + factored + first_moment;
  if (operands.size() % width) {
    refuse(name, "expected " + std::to_string(width) + " operands a tensor");
  }
  if (hypers.size() != hyper_count) {
    refuse(name, "expected " + std::to_string(hyper_count) + " hyperparameters");
  }
  if (operands.empty()) {
    return {};
  }
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device != mx::Device::cpu) {
    refuse(name, "there is no kernel for this device");
  }
  std::vector<mx::Dtype> dtypes;
  for (size_t first = 0; first < operands.size(); first += width) {
    check(&operands[first], first / width, factored, first_moment);
    push_dtypes(&operands[first], factored, first_moment, dtypes);
  }
  auto sources = push_scalars(name, hypers, learning_rate, step, scale, stream, operands);
  auto update = std::make_shared<AdafactorUpdate>(
      stream, std::move(sources), factored, first_moment, std::move(dtypes));
  return take_all(token_of(std::move(update), std::move(operands)));
}

void AdafactorUpdate::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  release_held_buffers(stream(), inputs, operands(), tensors());
  cpu::AdafactorStep step(sources_, factored_, first_moment_, inputs, dtypes());
  Handoff placed = place_outputs(
      inputs, operands(), dtypes(), [](size_t bytes) { return mx::allocator::malloc(bytes); });
  const Handoff& held = hand_over(std::move(placed), outputs[0]);
  step.enqueue(stream(), held.written(), outputs[0].data_shared_ptr());
}

void AdafactorUpdate::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  throw std::logic_error("mlx_opt::AdafactorUpdate has no GPU implementation");
}

std::shared_ptr<TokenStep> AdafactorUpdate::again() const {
  auto stream = const_cast<AdafactorUpdate*>(this)->stream();
  return std::make_shared<AdafactorUpdate>(stream, sources_, factored_, first_moment_, dtypes());
}

} // namespace mlx_opt
