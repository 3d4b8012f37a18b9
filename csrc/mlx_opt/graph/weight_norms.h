// The norms of the updates and of the new weights of a step, for each group.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx_opt/graph/request.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// Norms in MLX's operations: float32, {groups, 2}, for each group the norm of the updates and that
/// of the new weights.
class MLX_OPT_API WeightNorms {
 public:
  WeightNorms(size_t groups, mx::Stream stream) : squares_(2 * groups), stream_(stream) {}

  /// Adds a weight before and after the step.
  void add(size_t group, const mx::array& before, const mx::array& after);

  /// Adds the weights of which there are norms already, {groups, 2}.
  void add(const mx::array& norms);

  mx::array norms() const;

 private:
  std::vector<std::vector<mx::array>> squares_; // of each group the updates', then the weights'
  std::vector<mx::array> of_groups_;            // squares of norms, {groups, 2}
  mx::Stream stream_;
};

/// True if the kernels for a device take the norms of a program's step in the step's own pass.
MLX_OPT_API bool kernels_take_norms(const Program& program, mx::Device device);

/// The place of the master weight among the operands of such a leaf; 0 if it has none.
MLX_OPT_API size_t place_of_master(const Program& program, size_t kind);

/// The norms of a step with these results, in MLX's operations. The weight of a parameter that has
/// a master weight is that one.
mx::array norms_of(
    const Request& request, const Leaves& leaves, const std::vector<mx::array>& results);

} // namespace mlx_opt
