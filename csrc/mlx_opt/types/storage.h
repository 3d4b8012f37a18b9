// How arrays store their elements. Plain data: the CPU's kernels, compiled once per instruction
// set, read it too.
#pragma once

#include <cstdint>

namespace mlx_opt {

/// bits16: whole numbers from 0 to 65535, of the remainders of master weights. int8 and uint8:
/// codes of numbers of any sign and of numbers that are not negative, in blocks with scales.
enum class Storage : uint8_t { float32, float16, bfloat16, bits16, int8, uint8 };

/// True for codes.
constexpr bool is_coded(Storage storage) {
  return storage == Storage::int8 || storage == Storage::uint8;
}

} // namespace mlx_opt
