// The storage format of the remainders of master weights: whole numbers of 16 bits.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

struct Bits16 {
  using Stored = ushort;
  using Vector = ushort4;

  MLX_OPT_FN float widen(ushort bits) {
    return static_cast<float>(bits);
  }
  MLX_OPT_FN ushort narrow(float x) {
    return static_cast<ushort>(x);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
