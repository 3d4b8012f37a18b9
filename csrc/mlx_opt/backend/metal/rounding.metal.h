// Stochastic rounding of an update's results. Metal compiles this text after update.metal.h and
// rules/rounding.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

template <typename Format>
struct IsBFloat16 {
  enum : bool { value = false };
};

template <>
struct IsBFloat16<BFloat16> {
  enum : bool { value = true };
};

struct Stochastic {
  // Rounds those of the results [first, first + count) that are stored in bfloat16.
  template <int count, typename... Formats>
  MLX_OPT_FN void round(
      List<Formats...>, thread float* x, uint tensor_key, float step, ulong first) {
    const bool rounds[] = {IsBFloat16<Formats>::value...};
    for (uint k = 0; k < sizeof...(Formats); ++k) {
      if (rounds[k]) {
        const uint key = rounding_key(tensor_key, step, k);
        for (uint lane = 0; lane < count; ++lane) {
          x[k * count + lane] = rounded(x[k * count + lane], key, static_cast<uint>(first + lane));
        }
      }
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
