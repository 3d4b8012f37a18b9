// The pass of an elementwise rule, generic over the rule and the storage of each operand.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// Fields: formats of the parameter and its slots; New: of their new values.
// How results are rounded: Nearest or Stochastic.
template <
    typename Rule,
    typename Fields,
    typename Format,
    typename New,
    Scaling scaling,
    typename How>
struct Update : PassBase<Rule, scaling> {
  using Gradient = Format;
  using Rows = Fields;
  using Kept = Fields;
  using In = typename Fields::template Then<List<Gradient>>;
  using Out = New;
  using Rounding = How;
  using Tensor = cuda::Tensor<In::count, Out::count + Rounding::words>;
  static constexpr int first = 0;

  __device__ __forceinline__ Update(const float* group_uniforms, const cuda::Extent& tensor)
      : PassBase<Rule, scaling>(group_uniforms, tensor.group) {}

  MLX_OPT_FN unsigned block() {
    return blockIdx.x;
  }

  template <int count>
  __device__ __forceinline__ void apply(float (&x)[In::count][count]) {
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      const auto e = take<typename Rule::Element>(x, lane);
      const float g = this->scaled(x[Fields::count][lane]);
      put(Rule::update(e, g, this->uniforms.hypers, this->uniforms.scalars), lane, x);
    }
  }

  __device__ __forceinline__ void end(const Tensor&, unsigned) {}
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
