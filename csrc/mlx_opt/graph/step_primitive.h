// The primitives of a step. One TokenStep, as Update is, does the work of all tensors; its single
// output, the token, carries the finished buffers. Each new parameter and moment is a Take whose
// only input is the token. So every array has one holder, which is what MLX asks before it lends a
// buffer again, and the cost of a step grows with its tensors, not with their square.
#pragma once

#include <functional>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx_opt/graph/donation.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/scalars.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// The handoff that an evaluated token carries.
Handoff& handoff(const mx::array& token);

/// A primitive whose output is a token. Inputs: for each tensor its operands, the parameter, its
/// moments and its gradient, each float32, float16 or bfloat16; then the scalars, as ScalarSources
/// says. Outputs behind the token: for each tensor the parameter and its moments, of those shapes.
class TokenStep : public mx::Primitive {
 public:
  /// `dtypes`: of the outputs.
  TokenStep(mx::Stream stream, std::vector<Run> runs, std::vector<mx::Dtype> dtypes)
      : mx::Primitive(stream), runs_(std::move(runs)), dtypes_(std::move(dtypes)) {}

  /// Notes where `inputs` lie and finds the kernels. Throws std::runtime_error if there are none to
  /// be had.
  virtual std::unique_ptr<Prepared> prepare(const Pointers& inputs, Start start) = 0;

  /// A primitive that does the same.
  virtual std::shared_ptr<TokenStep> again() const = 0;

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  /// One by one where that is all that serves; Take::vmap finds the outputs.
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

  /// The tensors. Each has one output fewer than operands.
  const std::vector<Run>& runs() const {
    return runs_;
  }

  const std::vector<mx::Dtype>& dtypes() const {
    return dtypes_;
  }

  /// The input that output `position` takes the place of.
  size_t input_of(size_t position) const;

 private:
  void enqueue(
      const std::vector<mx::array>& inputs,
      mx::array& token,
      const std::function<mx::array::Data(size_t)>& allocate);

  std::vector<Run> runs_;
  std::vector<mx::Dtype> dtypes_;
};

/// A step of an elementwise rule. The operands of a tensor are all of the parameter's shape.
class Update : public TokenStep {
 public:
  Update(mx::Stream stream, Schedule schedule, std::vector<mx::Dtype> dtypes)
      : TokenStep(stream, runs_of(schedule.rule, dtypes.size()), dtypes),
        schedule_(std::move(schedule)) {}

  std::unique_ptr<Prepared> prepare(const Pointers& inputs, Start start) override;

  std::shared_ptr<TokenStep> again() const override;

  /// All together, unless a scalar is mapped.
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override;

  const char* name() const override {
    return "mlx_opt::Update";
  }

 private:
  static std::vector<Run> runs_of(Rule rule, size_t outputs) {
    const int fields = info(rule).moments + 1;
    return {{outputs / fields, fields + 1}};
  }

  Schedule schedule_;
};

/// Output `position` of the step whose token is the input.
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

/// Puts the buffers where the Takes find them.
const Handoff& hand_over(Handoff placed, mx::array& token);

/// The outputs of `step`, lazily.
std::vector<mx::array> outputs_of(
    std::shared_ptr<TokenStep> step,
    std::vector<mx::array> operands,
    const std::vector<mx::array>& scalars);

/// The token of `step` over `inputs`, and its outputs.
mx::array token_of(std::shared_ptr<TokenStep> step, std::vector<mx::array> inputs);
std::vector<mx::array> take_all(const mx::array& token);

} // namespace mlx_opt
