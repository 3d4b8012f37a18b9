// Stochastic rounding of an update's results. NVRTC compiles this text after walk.cu.h and
// rules/rounding.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

template <typename... Formats, int count>
MLX_OPT_FN void round_bfloat16(
    List<Formats...>, unsigned tensor_key, float step, Index first, int apart, float (*x)[count]) {
  constexpr bool rounds[] = {Formats::id == BFloat16::id...};
#pragma unroll
  for (unsigned k = 0; k < sizeof...(Formats); ++k) {
    if (rounds[k]) {
      const unsigned key = rounding_key(tensor_key, step, k);
#pragma unroll
      for (int lane = 0; lane < count; ++lane) {
        x[k][lane] = rounded(x[k][lane], key, static_cast<unsigned>(first + lane * apart));
      }
    }
  }
}

// Rounds those results that are stored in bfloat16. The word is the key of the tensor.
struct Stochastic {
  static constexpr int words = 1;

  template <typename Out, typename Tensor, typename Results>
  MLX_OPT_FN void round(const Tensor& tensor, float step, Index first, int apart, Results x) {
    const auto key = static_cast<unsigned>(reinterpret_cast<size_t>(tensor.out[Out::count]));
    round_bfloat16(Out{}, key, step, first, apart, x);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
