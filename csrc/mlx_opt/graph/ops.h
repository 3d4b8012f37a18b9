// A step of a rule over many tensors, as a lazy graph.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// A hyperparameter: a constant, or a 0-d array that is read when the step runs.
using Scalar = std::variant<double, mx::array>;

/// A shape as Python writes it: (4, 8), (3,), (). By hand, because MLX's operator<< for shapes
/// crashes in its CUDA build when called from here.
MLX_OPT_API std::string shape_text(const mx::Shape& shape);

/// The rule of that name, if there is one.
MLX_OPT_API std::optional<Rule> find_rule(std::string_view name);

/// Whether the rules can be run on `device` by this build.
MLX_OPT_API bool available(mx::Device device);

/// Whether a rule's arithmetic covers this storage: float32, float16 and bfloat16.
MLX_OPT_API bool is_storage(mx::Dtype dtype);

/// Whether any of `arrays` is being traced by a gradient transformation (vjp, jvp), which the
/// primitives do not take part in.
MLX_OPT_API bool traced_for_gradient(const std::vector<mx::array>& arrays);

/// One step of `rule`.
///
/// `operands`: for each tensor its parameter, its moments in the rule's order and its gradient, all
/// of one shape and each of a storage dtype. `hypers`: in the rule's order. `learning_rate` and
/// `step` (the number of this step, from 1): 0-d.
///
/// Returns for each tensor the new parameter and the new moments. Their dtypes are those that
/// mlx.optimizers promotes to; arithmetic is in float32. An operand that nobody else holds when the
/// step runs gives its buffer to the result.
///
/// Throws std::invalid_argument where the arguments do not fit the rule.
MLX_OPT_API std::vector<mx::array> step(
    Rule rule,
    std::vector<mx::array> operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

/// The shape of array `index` of a parameter's state: the parameter's, but where the state is
/// `factored` those of its rows' and its columns' means for the first two.
MLX_OPT_API mx::Shape state_shape(const mx::Shape& parameter, bool factored, size_t index);

/// One step of Adafactor (Shazeer and Stern, arXiv:1804.04235).
///
/// `operands`: for each tensor its parameter; the running means of the squares of its elements if
/// it is one of the first `unfactored`, else of its rows (its shape without the last dimension) and
/// of its columns (without the last but one); where there is a `first_moment` that; and its
/// gradient. `hypers`: those of rules/adafactor.h, in order. The rest and the results are as of
/// `step`.
///
/// Throws std::invalid_argument where the arguments do not fit, or the device has no backend.
MLX_OPT_API std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    size_t unfactored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

} // namespace mlx_opt
