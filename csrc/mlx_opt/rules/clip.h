// Clipping by the global norm: Pascanu, Mikolov and Bengio, arXiv:1211.5063. No elementwise rule:
// one number for all gradients.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Clipping {
  // The scale of gradients with this norm. With `skip_nonfinite` it is NaN, which skips the step,
  // if the norm is not finite.
  MLX_OPT_FN float scale(float norm, float max_norm, bool skip_nonfinite) {
    if (skip_nonfinite && !(absolute(norm) <= 3.402823466e38f)) {
      return norm - norm;
    }
    return minimum(max_norm / (norm + 1e-6f), 1.0f);
  }
};

MLX_OPT_RULES_END
