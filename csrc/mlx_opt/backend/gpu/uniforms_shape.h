// The layout of the uniforms: the scalars of a group of tensors as a GPU's kernels read them.
#pragma once

#include <string_view>

namespace mlx_opt::gpu {

/// What a rule's uniforms consist of.
struct UniformsShape {
  std::string_view rule;
  int hypers; // with the rate of the average if there is one
  int scalars;
  bool has_ema = false;

  /// Hypers and Scalars of the rule, the Scale of the gradients, and the step's number.
  int floats() const {
    return 3 * hypers + scalars + 3;
  }
};

} // namespace mlx_opt::gpu
