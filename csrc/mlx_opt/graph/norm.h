// The primitive of the global norm.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The square root of the sum of the squares of all elements of all inputs, a float32. For devices
/// that have kernels of it; elsewhere `global_norm` makes it of MLX's own operations.
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

} // namespace mlx_opt
