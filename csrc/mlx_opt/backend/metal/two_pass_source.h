// The text of the kernels of a rule of two passes over each tensor. Knows neither Metal nor MLX, so
// that it can be tested without.
#pragma once

#include "mlx_opt/backend/metal/kernel_source.h"

namespace mlx_opt::metal {

/// A pass: the state's step, which leaves sums, and the parameter's, which takes rates.
enum class Pass : uint8_t { state, parameter };

/// One pass over tensors. `update`: as of one update, but with what the pass alone reads and writes
/// in its operands. A parameter's strided pass has state that lies as the results do.
struct PassKernel {
  Pass pass;
  UpdateKernel update;

  bool operator==(const PassKernel&) const = default;
};

/// Computes the rates of each tensor of a dispatch, a threadgroup a tensor.
struct RatesKernel {
  std::string_view rule;

  bool operator==(const RatesKernel&) const = default;
};

/// A pass of a step whose kernel would be `step`, were it one update. `walk`: of the pass.
PassKernel pass_of(Pass pass, UpdateKernel step, Walk walk);

/// The most tensors that a dispatch of either pass has slots for; throws as max_per_pack.
int max_per_pass(const Operands& step);

/// As those of UpdateKernel.
std::string name(const PassKernel& kernel);
std::string name(const RatesKernel& kernel);
std::string source(const PassKernel& kernel);
std::string source(const RatesKernel& kernel);

} // namespace mlx_opt::metal
