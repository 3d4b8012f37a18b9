// The optimizers as functions over vectors of arrays.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"
#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

/// The names of the arrays that the optimizer keeps for a parameter of so many dimensions, in the
/// order of its state. They are those of mlx.optimizers: {"m", "v"} for AdamW.
///
/// Throws std::invalid_argument for a hyperparameter out of its range.
MLX_OPT_API std::vector<std::string_view> state_names(const Hyperparameters& hypers, size_t ndim);

/// The state that `update` takes: for each parameter the arrays of `state_names`, with the
/// parameter's dtype and its shape unless the optimizer's documentation says another. They are
/// zeros, or NaN where the first step takes a copy of the parameter or the gradient.
MLX_OPT_API Arrays initial_state(const Hyperparameters& hypers, const Arrays& parameters);

/// One step of an optimizer over all parameters: replaces the arrays in `parameters` and `state` by
/// their successors.
///
/// parameters     any number of arrays of any shape; float32, float16 or bfloat16.
/// gradients      for each parameter one of its shape, in any of these dtypes.
/// state          as `initial_state` made it and the last step left it.
/// learning_rate  a 0-d array.
/// step           the number of this step, from 1; a 0-d array.
/// scale          what the gradients are multiplied with, as `gradient_scale` makes it.
/// s              where it runs; the default stream if left out.
///
/// The successors are lazy, as all of MLX, and when they are evaluated they take the buffers of
/// what they replace, where nobody else holds that. Where all is evaluated, and nobody else holds a
/// parameter or its state, the step is queued at once and the arrays have new values. So evaluate
/// the gradients first, move them in, and keep no copy of the arrays.
///
/// Arithmetic is in float32; the dtypes are those to which mlx.optimizers promotes, which are the
/// old ones where a gradient has its parameter's dtype. A step can be part of a function that
/// mx::compile or mx::vmap takes, but not of one that is differentiated.
///
/// Throws std::invalid_argument where an argument does not fit, which it names, and for NAdam,
/// whose mu_product Optimizer alone keeps; std::runtime_error if the device has no backend or the
/// running MLX is not the one that this library was built for (MLX_OPT_MLX_VERSION). `parameters`
/// and `state` are then as they were.
MLX_OPT_API void update(
    Arrays& parameters,
    Arrays gradients,
    Arrays& state,
    const Hyperparameters& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale = std::nullopt,
    mx::StreamOrDevice s = {});

/// `update` of one optimizer by name, for instance
///
///   adamw(parameters, std::move(gradients), state, {.weight_decay = 0.1}, 1e-3, step);
///
/// with numbers, or with arrays as `update` takes them. With clipping:
///
///   const mx::array norm = global_norm(gradients);
///   const auto scale = gradient_scale(norm, {.max_norm = 1.0, .skip_nonfinite = true});
///   adamw(parameters, std::move(gradients), state, {.weight_decay = 0.1}, 1e-3, step, scale);
///
/// and the step is applied if mx::isfinite(norm).
#define MLX_OPT_FUNCTION(function, Hypers)                                                  \
  inline void function(                                                                     \
      Arrays& parameters,                                                                   \
      Arrays gradients,                                                                     \
      Arrays& state,                                                                        \
      const Hypers& hypers,                                                                 \
      const mx::array& learning_rate,                                                       \
      const mx::array& step,                                                                \
      const std::optional<GradientScale>& scale = std::nullopt,                             \
      mx::StreamOrDevice s = {}) {                                                          \
    update(parameters, std::move(gradients), state, hypers, learning_rate, step, scale, s); \
  }                                                                                         \
  inline void function(                                                                     \
      Arrays& parameters,                                                                   \
      Arrays gradients,                                                                     \
      Arrays& state,                                                                        \
      const Hypers& hypers,                                                                 \
      double learning_rate,                                                                 \
      std::uint64_t step,                                                                   \
      const std::optional<GradientScale>& scale = std::nullopt,                             \
      mx::StreamOrDevice s = {}) {                                                          \
    const mx::array rate(static_cast<float>(learning_rate));                                \
    const mx::array count(step);                                                            \
    update(parameters, std::move(gradients), state, hypers, rate, count, scale, s);         \
  }
MLX_OPT_FOR_EACH_OPTIMIZER(MLX_OPT_FUNCTION)
#undef MLX_OPT_FUNCTION

} // namespace mlx_opt
