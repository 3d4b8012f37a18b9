// Builds the source text of the kernels of a rule of two passes over each tensor. Depends on
// neither Metal nor MLX, so that it can be tested without them.
#pragma once

#include "mlx_opt/backend/metal/kernel_source.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::metal {

/// The passes: `state` writes sums, and updates the slots if the rule has it do so; the second one
/// updates what is left with the rates: `parameter` from the new slots, `gradient` from the
/// gradient too.
enum class Pass : uint8_t { state, parameter, gradient };

/// One pass over tensors. `update`: the key of a whole update, but with only the operands that the
/// pass reads and writes. In a strided second pass new slots have the layout of the results.
struct PassKernel {
  Pass pass;
  UpdateKernel update;

  bool operator==(const PassKernel&) const = default;
};

/// Computes the rates of each tensor of a dispatch, with one threadgroup for each tensor.
struct RatesKernel {
  std::string_view rule;

  bool operator==(const RatesKernel&) const = default;
};

/// The second pass of a rule.
inline Pass second_pass_of(const TwoPassInfo& rule) {
  return rule.reads_gradient_again ? Pass::gradient : Pass::parameter;
}

/// The kernel of a pass of a step. `step`: the kernel of the step if it were a single update.
/// `walk`: of the pass.
PassKernel pass_of(const TwoPassInfo& rule, Pass pass, UpdateKernel step, Walk walk);

/// The maximum number of tensors for which a dispatch of either pass has slots; throws as
/// max_per_pack.
int max_per_pass(const TwoPassInfo& rule, const Operands& step);

/// As for UpdateKernel.
std::string name(const PassKernel& kernel);
std::string name(const RatesKernel& kernel);
std::string source(const PassKernel& kernel);
std::string source(const RatesKernel& kernel);

} // namespace mlx_opt::metal
