// How the float32 weights of parameters in bfloat16 and float16 are kept. Plain data: the CPU's
// kernels, compiled once per instruction set, read it too.
#pragma once

#include <cstdint>

namespace mlx_opt {

/// How the float32 weights of parameters in bfloat16 and float16 are kept: docs/master-weights.md.
enum class MasterWeights : uint8_t {
  none,
  float32,   // in a slot of their own
  remainder, // of bfloat16 alone: the parameter has the first 16 bits, a slot the others
};

} // namespace mlx_opt
