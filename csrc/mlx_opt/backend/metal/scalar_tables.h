// What the kernel that computes the scalars of a step takes: the host's compiler and Metal's both
// read this.
#pragma once

namespace mlx_opt {
namespace metal {

// A constant x with 1 - x and its logarithm; or, where `given` is not negative, the scalar of
// that number among those that the kernel reads. A group has those of the step's number (uint64),
// the learning rate, its hyperparameters and the gradients' scale (float32), in this order.
struct Source {
  float value, one_minus, log;
  int given;
};

} // namespace metal
} // namespace mlx_opt
