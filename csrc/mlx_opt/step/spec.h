// A step as data: what a backend needs to run it, besides the arrays.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/rules/list.h"
#include "mlx_opt/rules/portable.h"
#include "mlx_opt/step/scaling.h"
#include "mlx_opt/types/master_weights.h"

namespace mlx_opt {

/// Consecutive tensors with the same number of operands: the parameter, its slots, its master
/// weight if it has one, the average of its weights if the step has one, the scales of each slot of
/// codes, and its gradient. Each operand but the gradient has a successor among the outputs.
struct TensorRun {
  size_t tensors;
  int operands;
  MasterWeights masters = MasterWeights::none;
  int scales = 0; // operands that are scales of codes
};

/// The scalars of one group of tensors.
struct GroupSources {
  std::vector<double> hypers; // in the rule's order, then the rate of the average if there is one
  std::vector<int> traced;    // indices of those that are read from arrays when the step runs
  bool reads_step = false;
  bool reads_learning_rate = true;
  float rate_scale = 1.0f; // multiplies the learning rate
};

/// The inputs of a step, in order: the operands of each run's tensors; for each group the step's
/// number (uint64) and the learning rate (float32), if the group reads them, and its traced
/// hyperparameters (float32); unless the scaling is none, the gradients' scale, and if they are
/// clipped one by one, their maximum (float32). All inputs but the operands are 0-d.
struct StepSpec {
  Rule rule;
  std::vector<TensorRun> runs;
  std::vector<uint16_t>
      groups; // of each tensor, in the order of the runs; empty: all are in group 0
  std::vector<GroupSources> sources; // of each group
  Scaling scaling = Scaling::none;
  bool clips_values = false; // false if the scaling is none
  bool has_ema = false;      // true if each tensor has an average of its weights

  /// True if there is one output more, the last: for each group the norm of the updates and that of
  /// the new weights, in float32.
  bool takes_norms = false;

  /// Of each tensor the key of its random bits, if results in bfloat16 are rounded stochastically;
  /// else empty.
  std::vector<uint32_t> rounding_keys;

  bool rounds() const {
    return !rounding_keys.empty();
  }

  size_t operand_count() const {
    size_t count = 0;
    for (const TensorRun& run : runs) {
      count += run.tensors * run.operands;
    }
    return count;
  }

  /// The group of tensor `index`.
  uint16_t group_of(size_t index) const {
    return groups.empty() ? 0 : groups[index];
  }
};

/// The arrays that hold a group's scalars; null for a scalar that is not read from an array.
struct GroupInputs {
  const mlx::core::array* step = nullptr;
  const mlx::core::array* learning_rate = nullptr;
  std::vector<const mlx::core::array*> traced;
};

struct ScalarInputs {
  std::vector<GroupInputs> groups;
  const mlx::core::array* scale = nullptr;
  const mlx::core::array* max_value = nullptr; // of the gradients after the scale

  /// `scalars`: the inputs after the operands.
  ScalarInputs(const StepSpec& spec, const mlx::core::array* const* scalars) {
    groups.reserve(spec.sources.size());
    for (const GroupSources& sources : spec.sources) {
      GroupInputs& inputs = groups.emplace_back();
      inputs.step = sources.reads_step ? *scalars++ : nullptr;
      inputs.learning_rate = sources.reads_learning_rate ? *scalars++ : nullptr;
      inputs.traced.assign(scalars, scalars + sources.traced.size());
      scalars += sources.traced.size();
    }
    scale = spec.scaling == Scaling::none ? nullptr : *scalars++;
    max_value = spec.clips_values ? *scalars : nullptr;
  }

  std::vector<const mlx::core::array*> all() const {
    std::vector<const mlx::core::array*> arrays;
    const auto push = [&](const mlx::core::array* x) {
      if (x) {
        arrays.push_back(x);
      }
    };
    for (const GroupInputs& group : groups) {
      push(group.step);
      push(group.learning_rate);
      arrays.insert(arrays.end(), group.traced.begin(), group.traced.end());
    }
    push(scale);
    push(max_value);
    return arrays;
  }
};

/// True if any of a tensor's results is stored in bfloat16.
inline bool has_bfloat16(const mlx::core::Dtype* results, int count) {
  return std::find(results, results + count, mlx::core::bfloat16) != results + count;
}

/// A constant hyperparameter in the form that the rules use.
inline MLX_OPT_LEVEL::Hyper make_hyper(double x) {
  return {float(x), float(1.0 - x), float(std::log(x))};
}

} // namespace mlx_opt
