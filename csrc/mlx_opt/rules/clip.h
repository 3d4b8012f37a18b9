// Clipping by the global norm: Pascanu, Mikolov and Bengio, arXiv:1211.5063. No elementwise rule:
// one number for all gradients.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

struct Clipping {
  // What gradients of that norm are multiplied with. NaN, for a step that is skipped, where it
  // `skip_nonfinite` a norm that is not finite.
  MLX_OPT_FN float scale(float norm, float max_norm, bool skip_nonfinite) {
    if (skip_nonfinite && !(absolute(norm) <= 3.402823466e38f)) {
      return norm - norm;
    }
    return minimum(max_norm / (norm + 1e-6f), 1.0f);
  }
};

MLX_OPT_RULES_END
