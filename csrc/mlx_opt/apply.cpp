#include "mlx_opt/apply.h"

#include <stdexcept>

#include "mlx/version.h"
#include "mlx_opt/version.h"

namespace mlx_opt {
namespace {

[[noreturn]] void reject(const std::string& what) {
  throw std::invalid_argument("mlx_opt: " + what);
}

void check_count(const char* what, size_t given, size_t expected) {
  if (given != expected) {
    reject("expected " + std::to_string(expected) + " " + what + ", got " + std::to_string(given));
  }
}

} // namespace

const char* dtype_text(mx::Dtype dtype) {
  constexpr const char* texts[] = {
      "bool",
      "uint8",
      "uint16",
      "uint32",
      "uint64",
      "int8",
      "int16",
      "int32",
      "int64",
      "float16",
      "float32",
      "float64",
      "bfloat16",
      "complex64"};
  static_assert(std::size(texts) == static_cast<size_t>(mx::Dtype::Val::complex64) + 1);
  return texts[static_cast<int>(dtype.val())];
}

void check_mlx() {
  if (std::string_view(mx::version()) != MLX_OPT_MLX_VERSION) {
    throw std::runtime_error(
        std::string("mlx_opt " MLX_OPT_VERSION " is built for MLX " MLX_OPT_MLX_VERSION
                    ", but MLX ") +
        mx::version() + " is running: install mlx==" MLX_OPT_MLX_VERSION);
  }
}

void check_operand(
    const std::string& name, const std::string& what, const mx::array& x, const mx::Shape& shape) {
  if (x.shape() != shape) {
    reject(name + ": " + what + " " + shape_text(x.shape()) + ", parameter " + shape_text(shape));
  }
  if (!is_storage(x.dtype())) {
    reject(
        name + ": " + what + " must be float32, float16 or bfloat16, got " + dtype_text(x.dtype()));
  }
}

void apply(
    const Definition& definition,
    const std::function<std::string(size_t)>& name,
    Arrays& parameters,
    Arrays gradients,
    Arrays& state,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s) {
  check_mlx();
  const mx::Device device = mx::to_stream(s).device;
  if (!available(device)) {
    throw std::runtime_error("mlx_opt: this build has no backend for the device in use");
  }
  const size_t width = definition.state.size();
  check_count("gradients", gradients.size(), parameters.size());
  check_count("arrays of state", state.size(), parameters.size() * width);

  const size_t moments = info(definition.rule).moments;
  Arrays operands;
  operands.reserve(parameters.size() * (moments + 2) + 2);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const mx::Shape& shape = parameters[i].shape();
    check_operand(name(i), "parameter", parameters[i], shape);
    check_operand(name(i), "gradient", gradients[i], shape);
    operands.push_back(parameters[i]);
    for (size_t k = 0; k < width; ++k) {
      const mx::array& moment = state[i * width + k];
      check_operand(name(i), "state " + std::string(definition.state[k]), moment, shape);
      if (k < moments) {
        operands.push_back(moment);
      }
    }
    operands.push_back(std::move(gradients[i]));
  }
  if (traced_for_gradient(operands)) {
    reject("a step cannot be differentiated");
  }
  Arrays successors = mlx_opt::step(
      definition.rule, std::move(operands), definition.hypers, learning_rate, step, s);
  auto successor = successors.begin();
  for (size_t i = 0; i < parameters.size(); ++i) {
    parameters[i] = std::move(*successor++);
    for (size_t k = 0; k < moments; ++k) {
      state[i * width + k] = std::move(*successor++);
    }
  }
}

} // namespace mlx_opt
