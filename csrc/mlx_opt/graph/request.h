// The request for a step: a program, the leaves and their scalars.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/program.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt {

/// The scalars of a group. The arrays are 0-d.
struct GroupScalars {
  std::vector<Scalar> hypers; // as GroupSources has them
  mx::array learning_rate;
  mx::array step;              // the number of this step, from 1
  float rate_scale = 1.0f;     // multiplies the learning rate
  std::vector<int> split = {}; // of Muon's matrices; see Group
};

/// Pointers to the arrays of a step's leaves, sorted by kind.
class MLX_OPT_API Leaves {
 public:
  struct Kind {
    int operands;
    std::vector<size_t> leaves; // in the order in which they were added
    std::vector<mx::array*> arrays;
    std::vector<uint16_t> groups;
    std::vector<uint32_t> rounding_keys; // if the program rounds stochastically
  };

  /// `count`: the expected number of leaves.
  explicit Leaves(const Program& program, size_t count = 0)
      : rounds_(program.rounding_seed().has_value()) {
    for (size_t kind = 0; kind < program.kinds(); ++kind) {
      Kind& added = kinds_.emplace_back(Kind{program.operands(kind), {}, {}, {}, {}});
      added.leaves.reserve(count);
      added.arrays.reserve(count * added.operands);
      added.groups.reserve(count);
    }
  }

  /// Adds leaf number size(). The caller then appends pointers to its operands to `arrays`, in
  /// order. `rounding_key`: used if the program rounds stochastically.
  Kind& add(size_t kind, uint16_t group = 0, uint32_t rounding_key = 0) {
    Kind& added = kinds_[kind];
    if (rounds_) {
      added.rounding_keys.push_back(rounding_key);
    }
    added.leaves.push_back(size_++);
    added.groups.push_back(group);
    return added;
  }

  /// Adds a leaf with the group and the rounding key of leaf `index` of another kind.
  Kind& add_as(size_t kind, const Kind& other, size_t index) {
    const uint32_t key = other.rounding_keys.empty() ? 0 : other.rounding_keys[index];
    return add(kind, other.groups[index], key);
  }

  /// Appends the leaves of another part with the same slots; its group 0 becomes `first_group`.
  void append(const Leaves& other, uint16_t first_group);

  const std::vector<Kind>& kinds() const {
    return kinds_;
  }

  size_t size() const {
    return size_;
  }

  /// All operands in the order of a step's inputs.
  ArrayRefs operands() const;

  /// The leaves' indices in that order.
  std::vector<size_t> order() const;

 private:
  bool rounds_;
  std::vector<Kind> kinds_;
  size_t size_ = 0;
};

struct Request {
  const Program* program;
  std::vector<GroupScalars> groups;
  std::optional<GradientScale> scale;
  mx::Stream stream;
  /// Is set to the norms of each group's updates and new weights, float32, {groups, 2}; null if
  /// they are not asked for.
  mx::array* norms = nullptr;
};

/// A checked request, in the form that its primitive takes.
struct CheckedStep {
  StepSpec spec;
  std::vector<mx::Dtype> dtypes;  // of the outputs
  std::vector<mx::array> scalars; // the inputs after the operands
};

/// Validates a request. Throws std::invalid_argument if the scalars do not fit the rule,
/// std::runtime_error if the device has no backend.
MLX_OPT_API CheckedStep check(const Request& request, const Leaves& leaves);

/// True if the rule adds weight decay to the gradient.
MLX_OPT_API bool is_coupled(Rule rule, const std::vector<Scalar>& hypers);

/// Appends the dtypes of one tensor's results, as mlx.optimizers' formulas promote them. If the
/// format of a slot is set, or `keeps_parameter`, the parameter keeps its dtype. `operands`: the
/// parameter, its slots and the gradient.
MLX_OPT_API void push_dtypes(
    const Slots& slots,
    bool keeps_parameter,
    const mx::array* const* operands,
    bool coupled,
    std::vector<mx::Dtype>& dtypes);

/// Describes what is wrong with a leaf's shapes, without the leaf's name; empty if they are valid.
/// `operands`: the parameter, its slots and the gradient.
MLX_OPT_API std::string shape_problem(const Slots& slots, const mx::array* const* operands);

/// Describes what is wrong with the dtypes of a leaf's codes and scales; empty if they are valid or
/// there are none. `operands`: likewise.
MLX_OPT_API std::string codes_problem(const Slots& slots, const mx::array* const* operands);

/// True if the kernels can read and write every operand's dtype. `operands`: likewise.
MLX_OPT_API bool is_served(const Slots& slots, const mx::array* const* operands);

} // namespace mlx_opt
