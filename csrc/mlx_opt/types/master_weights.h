// How the float32 weights of parameters in bfloat16 and float16 are kept. Plain data: the CPU's
// kernels, compiled once per instruction set, read it too.
#pragma once

#include <cstdint>

namespace mlx_opt {

/// none: they are not. float32: in a slot of their own. remainder: a parameter in bfloat16 has the
/// first 16 bits, a slot the others; see rules/master.h.
enum class MasterWeights : uint8_t { none, float32, remainder };

} // namespace mlx_opt
