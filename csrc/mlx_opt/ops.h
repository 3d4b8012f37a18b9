// A step of a rule over many tensors, as a lazy graph.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/api.h"
#include "mlx_opt/rule.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// A hyperparameter: a constant, or a 0-d array that is read when the step runs.
using Scalar = std::variant<double, mx::array>;

/// What each gradient is multiplied with, in float32, before the rule sees it: a 0-d array. With
/// `skip_nonfinite` one that is not finite means that the step is not taken: the results are equal
/// to the operands.
struct GradientScale {
  mx::array value;
  bool skip_nonfinite = false;
};

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

/// One step of Adafactor (Shazeer and Stern, arXiv:1804.04235), on the CPU.
///
/// `operands`: for each tensor its parameter; the running means of the squares of its rows (its
/// shape without the last dimension) and of its columns (without the last but one) where it is
/// `factored`, else of its elements; where there is a `first_moment` that; and its gradient.
/// `hypers`: those of rules/adafactor.h, in order. The rest and the results are as of `step`.
///
/// Throws std::invalid_argument where the arguments do not fit, or the stream is not the CPU's.
MLX_OPT_API std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    bool factored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

/// The square root of the sum of the squares of all elements of all arrays, each of a storage
/// dtype: 0-d, float32. On the CPU and with CUDA, summed in double precision in one pass and in an
/// order that does not depend on the number of threads; else by MLX's own operations in float32.
///
/// Throws std::invalid_argument for another dtype.
MLX_OPT_API mx::array global_norm(const std::vector<mx::array>& arrays, mx::StreamOrDevice s = {});

} // namespace mlx_opt
