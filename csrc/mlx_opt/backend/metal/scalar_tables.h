// The arguments of the kernel that computes the uniforms of a step. Compiled by the host's compiler
// and by Metal's.
#pragma once

namespace mlx_opt {
namespace metal {

// A constant x with 1 - x and log x; or, if `given` is not negative, the scalar of that index among
// those that the kernel reads. A group has sources for the step's number (uint64), the learning
// rate, its hyperparameters and the gradients' scale and maximum (float32), in this order. A
// learning rate that is read is multiplied by `value`.
struct Source {
  float value, one_minus, log;
  int given;
};

} // namespace metal
} // namespace mlx_opt
