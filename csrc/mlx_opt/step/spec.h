// A step as data: what a backend is given to run, beside the arrays.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/step/scaling.h"

namespace mlx_opt {

/// Tensors that lie behind one another, each of as many operands: the parameter, its slots and its
/// gradient. All but the gradient have a successor among the outputs.
struct TensorRun {
  size_t tensors;
  int operands;
};

/// The scalars of one group of tensors.
struct GroupSources {
  std::vector<double> hypers; // in the rule's order
  std::vector<int> traced;    // positions of those that are read when the step runs instead
  bool reads_step = false;
  bool reads_learning_rate = true;
};

/// Inputs of a step, in order: for each run its tensors' operands; for each group the number of the
/// step (uint64) and the learning rate (float32), where the group reads them, and its traced
/// hyperparameters (float32); the gradients' scale (float32), unless the scaling is none. All but
/// the operands are 0-d.
struct StepSpec {
  Rule rule;
  std::vector<TensorRun> runs;
  std::vector<uint16_t>
      groups; // of each tensor, in the order of the runs; empty: all are in group 0
  std::vector<GroupSources> sources; // of each group
  Scaling scaling = Scaling::none;

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

/// The arrays that a group's scalars are read from; null where there is none.
struct GroupInputs {
  const mlx::core::array* step = nullptr;
  const mlx::core::array* learning_rate = nullptr;
  std::vector<const mlx::core::array*> traced;
};

struct ScalarInputs {
  std::vector<GroupInputs> groups;
  const mlx::core::array* scale = nullptr;

  /// `scalars`: the inputs behind the operands.
  ScalarInputs(const StepSpec& spec, const mlx::core::array* const* scalars) {
    groups.reserve(spec.sources.size());
    for (const GroupSources& sources : spec.sources) {
      GroupInputs& inputs = groups.emplace_back();
      inputs.step = sources.reads_step ? *scalars++ : nullptr;
      inputs.learning_rate = sources.reads_learning_rate ? *scalars++ : nullptr;
      inputs.traced.assign(scalars, scalars + sources.traced.size());
      scalars += sources.traced.size();
    }
    scale = spec.scaling == Scaling::none ? nullptr : *scalars;
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
    return arrays;
  }
};

/// A hyperparameter as the rules take it.
inline MLX_OPT_LEVEL::Hyper make_hyper(double x) {
  return {float(x), float(1.0 - x), float(std::log(x))};
}

} // namespace mlx_opt
