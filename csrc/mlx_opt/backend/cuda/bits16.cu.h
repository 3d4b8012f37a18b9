// The storage format of the remainders of master weights: whole numbers of 16 bits.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

struct Bits16 {
  using Stored = unsigned short;
  static constexpr int id = 3;

  MLX_OPT_FN float widen(unsigned short bits) {
    return static_cast<float>(bits);
  }
  MLX_OPT_FN unsigned short narrow(float x) {
    return static_cast<unsigned short>(x);
  }
  MLX_OPT_FN void widen(unsigned word, float* to) {
    to[0] = static_cast<float>(word & 0xffffu);
    to[1] = static_cast<float>(word >> 16);
  }
  MLX_OPT_FN unsigned narrow(const float* from) {
    return static_cast<unsigned>(from[0]) | static_cast<unsigned>(from[1]) << 16;
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
