// What a step is asked for, checked, as the primitives take it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mlx_opt/rules/registry.h"
#include "mlx_opt/step/scalars.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt {

class TokenStep;

/// What a step is given beside its operands.
struct Given {
  const std::vector<Scalar>& hypers;
  const mx::array& learning_rate;
  const mx::array& step;
  const std::optional<GradientScale>& scale;
  mx::Stream stream;
};

/// A step of `rule` over operands as `step` has them; appends to `scalars` what it reads behind its
/// operands. Throws std::invalid_argument where these or the hyperparameters do not fit the rule.
std::shared_ptr<TokenStep> checked_step(
    Rule rule, const Pointers& operands, const Given& given, std::vector<mx::array>& scalars);

/// Appends to `scalars` those that are read when the step runs: the step (uint64), the learning
/// rate, the traced hyperparameters and the gradients' scale if there is one (float32).
ScalarSources push_scalars(
    std::string_view rule, const Given& given, std::vector<mx::array>& scalars);

/// Throws std::invalid_argument that names the rule.
[[noreturn]] void refuse(std::string_view rule, const std::string& what);

} // namespace mlx_opt
