#include "mlx_opt/algorithms/adafactor.h"

#include "mlx/ops.h"
#include "mlx_opt/backend/cpu/step.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/rules/adafactor.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

constexpr std::string_view name = "Adafactor";
constexpr size_t hyper_count =
    sizeof(MLX_OPT_LEVEL::Adafactor::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper);

void check(const mx::array* const* operands, size_t tensor, bool factored, bool first_moment) {
  const mx::Shape& shape = operands[0]->shape();
  if (factored && shape.size() < 2) {
    refuse(name, "tensor " + std::to_string(tensor) + " has fewer than two dimensions");
  }
  const size_t fields = 2 + factored + first_moment;
  for (size_t k = 0; k <= fields; ++k) {
    const bool mean = k > 0 && k <= size_t(1 + factored);
    const mx::Shape expected = mean ? state_shape(shape, factored, k - 1) : shape;
    if (operands[k]->shape() != expected) {
      refuse(
          name,
          "operand " + std::to_string(k) + " of tensor " + std::to_string(tensor) + " has shape " +
              shape_text(operands[k]->shape()) + ", expected " + shape_text(expected));
    }
    if (!is_storage(operands[k]->dtype())) {
      refuse(name, "operands must be float32, float16 or bfloat16");
    }
  }
}

// The dtypes of a tensor's results, as stock's formula promotes them.
void push_dtypes(
    const mx::array* const* operands,
    bool factored,
    bool first_moment,
    std::vector<mx::Dtype>& dtypes) {
  const int fields = 2 + factored + first_moment;
  const mx::Dtype both = mx::promote_types(operands[0]->dtype(), operands[fields]->dtype());
  const size_t parameter = dtypes.size();
  dtypes.push_back(both);
  for (int k = 1; k < fields; ++k) {
    const mx::Dtype other = k == fields - 1 && first_moment ? dtypes[parameter] : both;
    dtypes.push_back(mx::promote_types(operands[k]->dtype(), other));
    dtypes[parameter] = mx::promote_types(dtypes[parameter], dtypes.back());
  }
}

} // namespace

std::shared_ptr<TokenStep> checked_adafactor(
    const Pointers& operands,
    size_t unfactored,
    bool first_moment,
    const Given& given,
    std::vector<mx::array>& scalars) {
  Factoring factoring{unfactored, 0, first_moment};
  const size_t first_factored = unfactored * factoring.operands(false);
  const size_t width = factoring.operands(true);
  if (operands.size() < first_factored || (operands.size() - first_factored) % width) {
    refuse(
        name,
        "expected " + std::to_string(width) + " operands a factored tensor, of others one fewer");
  }
  factoring.factored = (operands.size() - first_factored) / width;
  if (given.hypers.size() != hyper_count) {
    refuse(name, "expected " + std::to_string(hyper_count) + " hyperparameters");
  }
  if (!available(given.stream.device)) {
    refuse(name, "there is no kernel for this device");
  }
  std::vector<mx::Dtype> dtypes;
  dtypes.reserve(operands.size());
  const auto* tensor = operands.data();
  for (size_t i = 0; i < unfactored + factoring.factored; ++i) {
    const bool factored = i >= unfactored;
    check(tensor, i, factored, first_moment);
    push_dtypes(tensor, factored, first_moment, dtypes);
    tensor += factoring.operands(factored);
  }
  auto sources = push_scalars(name, given, scalars);
  return std::make_shared<AdafactorUpdate>(
      given.stream, std::move(sources), factoring, std::move(dtypes));
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
  if (operands.empty()) {
    return {};
  }
  std::vector<mx::array> scalars;
  auto update = checked_adafactor(
      pointers_to(operands),
      unfactored,
      first_moment,
      {hypers, learning_rate, step, scale, mx::to_stream(s)},
      scalars);
  return outputs_of(std::move(update), std::move(operands), scalars);
}

std::unique_ptr<Prepared> AdafactorUpdate::prepare(const Pointers& inputs, Start) {
  if (stream().device == mx::Device::cpu) {
    return cpu::prepare_adafactor(sources_, factoring_, inputs, dtypes(), stream());
  }
  const auto* backend = gpu::find_backend().backend;
  return backend->prepare_adafactor(sources_, factoring_, inputs, dtypes(), stream());
}

std::shared_ptr<TokenStep> AdafactorUpdate::again() const {
  auto stream = const_cast<AdafactorUpdate*>(this)->stream();
  return std::make_shared<AdafactorUpdate>(stream, sources_, factoring_, dtypes());
}

} // namespace mlx_opt
