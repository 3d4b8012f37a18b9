// Steps on a fake GPU, and the CPU's results for the same operands.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/rules/registry.h"

namespace steps {

namespace mx = mlx::core;

inline constexpr int rules = std::size(mlx_opt::rule_infos);

/// Positive random numbers from a seed, evaluated.
mx::array numbers(mx::Shape shape, mx::Dtype dtype, int seed);

std::vector<mlx_opt::Scalar> sample_hypers(mlx_opt::Rule rule);

/// A step of SGD over tensors of one group; its inputs end with the learning rate.
mlx_opt::StepSpec sgd(size_t tensors, double weight_decay);

/// A step of Adafactor: the first `vectors` tensors have fewer than two dimensions.
std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    size_t vectors,
    bool first_moment,
    const std::vector<mlx_opt::Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<mlx_opt::GradientScale>& scale = std::nullopt);

/// The shape of slot `index` of Adafactor with a first moment.
mx::Shape state_shape(const mx::Shape& parameter, bool factored, size_t index);

/// Parameter, slots and gradient of each shape, with no other holder.
std::vector<mx::array> operands_of(
    mlx_opt::Rule rule, const std::vector<mx::Shape>& shapes, mx::Dtype dtype);

/// Operands of one dtype with float32 state and master weights: some are unset, others are not
/// those of their parameters.
std::vector<mx::array> operands_with_masters(
    mlx_opt::Rule rule, const std::vector<mx::Shape>& shapes, mx::Dtype dtype);

/// The same with remainders, any of 16 bits.
std::vector<mx::array> operands_with_remainders(
    mlx_opt::Rule rule, const std::vector<mx::Shape>& shapes);

/// A step of them.
std::vector<mx::array> step_with_masters(
    mlx_opt::Rule rule,
    mlx_opt::MasterWeights masters,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale = std::nullopt);

/// Float32 parameters and gradients whose slots have codes.
std::vector<mx::array> operands_with_codes(
    mlx_opt::Rule rule, const std::vector<mx::Shape>& shapes);

/// A step of them.
std::vector<mx::array> step_with_codes(
    mlx_opt::Rule rule,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale = std::nullopt);

/// A step that rounds stochastically, of operands in bfloat16.
std::vector<mx::array> step_with_rounding(
    mlx_opt::Rule rule,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale = std::nullopt);

/// The operands of `tensors` tensors, each with an average of its weights before the gradient, of
/// which some are unset.
std::vector<mx::array> with_averages(const std::vector<mx::array>& operands, size_t tensors);

/// A step of them.
std::vector<mx::array> step_with_ema(
    mlx_opt::Rule rule,
    mlx_opt::MasterWeights masters,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale = std::nullopt);

/// The arrays as numbers, with -1 for NaN, evaluated.
std::vector<mx::array> without_nan(std::vector<mx::array> arrays);

std::vector<mx::array> copies_of(const std::vector<mx::array>& arrays);

struct Scalars {
  mx::array learning_rate = mx::array(0.01f);
  mx::array step = mx::array(3, mx::uint64);
  std::optional<mlx_opt::GradientScale> scale = std::nullopt;
};

/// Evaluates the graph of a step with these results, as MLX does on a GPU. `hold` holds the data
/// that an array still has until the GPU is done.
std::vector<mx::array> evaluate_on_gpu(
    std::vector<mx::array> results,
    const std::function<void(const mx::array&)>& hold = [](const mx::array&) {});

/// The graph of a step of AdamW with a first moment in float16 and a second in bfloat16.
std::vector<mx::array> narrow_adamw(
    std::vector<mx::array> operands, const Scalars& scalars, mx::Stream stream);

struct Tolerance {
  double relative = 1e-6; // of float32
  double absolute = 1e-7;
};

/// Checks that the two differ at most by that; if stored as halves, almost nowhere and only by one
/// unit in the last place.
void check_equal(
    const std::vector<mx::array>& got,
    const std::vector<mx::array>& expected,
    Tolerance tolerance = {});

} // namespace steps
