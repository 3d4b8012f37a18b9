// How arrays store their elements. Plain data: the CPU's kernels, compiled once per instruction
// set, read it too.
#pragma once

#include <cstdint>

namespace mlx_opt {

/// bits16: whole numbers from 0 to 65535, of the remainders of master weights.
enum class Storage : uint8_t { float32, float16, bfloat16, bits16 };

} // namespace mlx_opt
