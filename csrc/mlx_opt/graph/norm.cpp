#include "mlx_opt/graph/norm.h"

#include <numeric>
#include <stdexcept>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx_opt/backend/cpu/norm.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/small_step.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {
namespace {

/// The global norm of all inputs, a float32, on devices that have kernels for it; elsewhere
/// `global_norm` builds it from MLX's own operations.
class Norm : public mx::UnaryPrimitive {
 public:
  using mx::UnaryPrimitive::UnaryPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override;
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;

  std::vector<mx::array> jvp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& tangents,
      const std::vector<int>& argnums) override;

  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>&) override {
    return {{}};
  }

  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }

  const char* name() const override {
    return "mlx_opt::Norm";
  }
};

mx::array squares_of(const mx::array& x, mx::Stream stream) {
  return mx::square(mx::astype(x, mx::float32, stream), stream);
}

mx::array norm_by_operations(const std::vector<mx::array>& arrays, mx::Stream stream) {
  mx::array total(0.0f);
  for (const mx::array& x : arrays) {
    total = mx::add(total, mx::sum(squares_of(x, stream), stream), stream);
  }
  return mx::sqrt(total, stream);
}

} // namespace

mx::array global_norm(const std::vector<mx::array>& arrays, mx::StreamOrDevice s) {
  for (const mx::array& x : arrays) {
    if (!is_storage(x.dtype())) {
      throw std::invalid_argument("mlx_opt global_norm: expected float32, float16 or bfloat16");
    }
  }
  const mx::Stream stream = mx::to_stream(s);
  if (!available(stream.device)) {
    return norm_by_operations(arrays, stream);
  }
  if (are_small(arrays, stream)) {
    return mx::array(cpu::norm(arrays));
  }
  return mx::array({}, mx::float32, std::make_shared<Norm>(stream), arrays);
}

void Norm::eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) {
  set_data(output, new_data(output.nbytes()));
  cpu::enqueue_norm(stream(), inputs, output.data<float>());
}

void Norm::eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) {
  gpu::find_backend().backend->norm(inputs, output, stream());
}

std::pair<std::vector<mx::array>, std::vector<int>> Norm::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  mx::array total(0.0f);
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<int> others(inputs[i].ndim());
    std::iota(others.begin(), others.end(), 0);
    if (axes[i] >= 0) {
      others.erase(others.begin() + axes[i]);
    }
    const auto squares = squares_of(inputs[i], stream());
    total = mx::add(total, mx::sum(squares, others, false, stream()), stream());
  }
  return {{mx::sqrt(total, stream())}, {0}};
}

std::vector<mx::array> Norm::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  mx::array product(0.0f);
  for (size_t i = 0; i < argnums.size(); ++i) {
    const auto x = mx::astype(primals[argnums[i]], mx::float32, stream());
    const auto tangent = mx::astype(tangents[i], mx::float32, stream());
    product = mx::add(product, mx::sum(mx::multiply(x, tangent, stream()), stream()), stream());
  }
  return {mx::divide(product, global_norm(primals, stream()), stream())};
}

std::vector<mx::array> Norm::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>& outputs) {
  const auto scale = mx::divide(cotangents[0], outputs[0], stream());
  std::vector<mx::array> gradients;
  for (int i : argnums) {
    const auto x = mx::multiply(mx::astype(primals[i], mx::float32, stream()), scale, stream());
    gradients.push_back(mx::astype(x, primals[i].dtype(), stream()));
  }
  return gradients;
}

} // namespace mlx_opt
