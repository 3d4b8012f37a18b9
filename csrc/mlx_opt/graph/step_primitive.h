// The primitives of a step. StepPrimitive does the work of all tensors; its single output, the
// token, carries the finished buffers. Each new parameter and slot is a StepOutput whose only input
// is the token. So every array has one holder, which MLX requires before it donates a buffer, and
// the cost of a step grows with its tensors, not with their square.
#pragma once

#include <functional>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// A step in a graph. Its inputs are those of StepSpec, its output is the token. The StepOutputs
/// that read the token are, for each tensor, the successors of its parameter and slots.
class StepPrimitive : public mx::Primitive {
 public:
  /// `dtypes`: of the tensors' outputs.
  StepPrimitive(mx::Stream stream, StepSpec spec, std::vector<mx::Dtype> dtypes)
      : mx::Primitive(stream), spec_(std::move(spec)), dtypes_(std::move(dtypes)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  /// Runs the whole batch as one step if the rule is elementwise and no scalar is mapped, else one
  /// step for each batch element. StepOutput::vmap finds the outputs.
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;

  /// Throws, as StepOutput::vjp does.
  std::vector<mx::array> jvp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& tangents,
      const std::vector<int>& argnums) override;

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>&) override {
    return {{}};
  }

  const char* name() const override {
    return "mlx_opt::Step";
  }

  const StepSpec& spec() const {
    return spec_;
  }

  const std::vector<mx::Dtype>& dtypes() const {
    return dtypes_;
  }

  /// The shape of output `position`; behind those of the tensors come the norms, if it takes them.
  mx::Shape shape_of(size_t position, const std::vector<mx::array>& inputs) const;

  /// The number of StepOutputs.
  size_t outputs() const {
    return dtypes_.size() + spec_.takes_norms;
  }

  /// Index of the input that output `position` replaces.
  size_t input_of(size_t position) const;

 private:
  void enqueue(
      const std::vector<mx::array>& inputs,
      mx::array& token,
      const std::function<Data(size_t)>& allocate);

  std::shared_ptr<StepPrimitive> copy() const;

  StepSpec spec_;
  std::vector<mx::Dtype> dtypes_;
};

/// Output `position` of a step; its input is the step's token.
class StepOutput : public mx::Primitive {
 public:
  StepOutput(mx::Stream stream, size_t position) : mx::Primitive(stream), position_(position) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;

  /// Throws: under a gradient a step is built from MLX's own operations, except inside vmap.
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;

  const char* name() const override {
    return "mlx_opt::StepOutput";
  }

 private:
  size_t position_;
};

/// Builds a step as a graph: its token, and the outputs of a token.
mx::array token_of(std::shared_ptr<StepPrimitive> step, std::vector<mx::array> inputs);
std::vector<mx::array> outputs_of(const mx::array& token);

/// The norms that a step takes, of its token.
mx::array norms_of(const mx::array& token);

/// Finds the kernels of a step and records the addresses of `inputs`. Throws std::runtime_error if
/// there are no kernels for it.
std::unique_ptr<Prepared> prepare(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode);

} // namespace mlx_opt
