// The primitives of a step. One Update does the work of all tensors; its single output, the token,
// carries the finished buffers. Each new parameter and moment is a Take whose only input is the
// token. So every array has one holder, which is what MLX asks before it lends a buffer again, and
// the cost of a step grows with its tensors, not with their square.
#pragma once

#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx_opt/schedule.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The buffers between Update and the Takes, one an output.
struct Handoff {
  std::vector<mx::array::Data> buffers;

  std::vector<mx::allocator::Buffer> written() const;
};

/// The handoff that an evaluated token carries.
Handoff& handoff(const mx::array& token);

/// Inputs: for each tensor the parameter, its moments and its gradient, each float32, float16 or
/// bfloat16 and of the parameter's shape; then the step (uint64), the learning rate, the traced
/// hyperparameters and, unless the scaling is none, the gradients' scale (float32), all 0-d.
class Update : public mx::Primitive {
 public:
  /// `dtypes`: of the outputs, parameter and moments of each tensor.
  Update(mx::Stream stream, Schedule schedule, std::vector<mx::Dtype> dtypes)
      : mx::Primitive(stream), schedule_(std::move(schedule)), dtypes_(std::move(dtypes)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;

  /// Throws, as Take::vjp does.
  std::vector<mx::array> jvp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& tangents,
      const std::vector<int>& argnums) override;

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>&) override {
    return {{}};
  }

  const char* name() const override {
    return "mlx_opt::Update";
  }

  /// Inputs a tensor has: parameter, moments, gradient. It has one output fewer.
  int operands() const {
    return info(schedule_.rule).moments + 2;
  }

  size_t tensors() const {
    return dtypes_.size() / (operands() - 1);
  }

  const std::vector<mx::Dtype>& dtypes() const {
    return dtypes_;
  }

 private:
  std::vector<mx::array> vmap_each(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) const;

  Schedule schedule_;
  std::vector<mx::Dtype> dtypes_;
};

/// Output `position` of the Update whose token is the input.
class Take : public mx::Primitive {
 public:
  Take(mx::Stream stream, size_t position) : mx::Primitive(stream), position_(position) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;

  /// Throws: a step under a gradient is a graph of MLX's own operations, except inside vmap.
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;

  const char* name() const override {
    return "mlx_opt::Take";
  }

 private:
  size_t position_;
};

/// The token of `update` over `inputs`, and its outputs.
mx::array token_of(std::shared_ptr<Update> update, std::vector<mx::array> inputs);
std::vector<mx::array> take_all(const mx::array& token);

} // namespace mlx_opt
