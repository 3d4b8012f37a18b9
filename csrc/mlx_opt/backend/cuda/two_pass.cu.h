// The passes of a rule that sums over each tensor, generic over the rule and the storage of each
// operand. The order of the sums depends only on the tensors' shapes, storages and layouts.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

template <bool first, typename A, typename B>
struct Choice {
  using Type = A;
};

template <typename A, typename B>
struct Choice<false, A, B> {
  using Type = B;
};

// The first pass writes each chunk's sums and updates the slots, if the rule has it do so. W,
// State, Format: formats of the parameter, its slots and the gradient; New: of the new slots, or
// none.
template <typename Rule, typename W, typename State, typename Format, typename New, Scaling scaling>
struct UpdateState : PassBase<Rule, scaling> {
  using Gradient = Format;
  using Rows = typename List<W>::template Then<State>;
  using Kept = typename Choice<FirstPass<Rule>::updates_state, State, List<>>::Type;
  using In = typename Rows::template Then<List<Gradient>>;
  using Out = New;
  // The last output is the address of the chunks' sums.
  using Tensor = cuda::Tensor<In::count, Out::count + 1>;
  static constexpr int first = 1;
  static constexpr int count_of_sums = sizeof(typename Rule::Sums) / sizeof(float);

  // Sums over this thread's elements.
  float sums[count_of_sums] = {};

  __device__ __forceinline__ UpdateState(const float* group_uniforms, const Tensor& tensor)
      : PassBase<Rule, scaling>(group_uniforms, tensor.group) {}

  MLX_OPT_FN unsigned block() {
    return blockIdx.x;
  }

  template <int count>
  __device__ __forceinline__ void apply(float (&x)[In::count][count]) {
    const Uniforms<Rule>& uniforms = this->uniforms;
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      const auto before = take<typename Rule::Element>(x, lane);
      const float g = this->scaled(x[Rows::count][lane]);
      put(after_first_pass<Rule>(before, g, uniforms.hypers, uniforms.scalars, 0), lane, x);
      // The second pass reads the stored state, so the sums use that too.
      Out::round_lane(x + first, lane);
      const auto e = take<typename Rule::Element>(x, lane);
      float added[count_of_sums][1];
      put(sums_of<Rule>(e, g, uniforms.hypers, uniforms.scalars), 0, added);
#pragma unroll
      for (int k = 0; k < count_of_sums; ++k) {
        sums[k] += added[k][0];
      }
    }
  }

  // The sums are 0 if the step is skipped.
  __device__ __forceinline__ void end(const Tensor& tensor, unsigned index) {
    double totals[count_of_sums];
#pragma unroll
    for (int k = 0; k < count_of_sums; ++k) {
      totals[k] = sums[k];
    }
    sums_over_block<threads>(totals);
    if (threadIdx.x == 0) {
      double* to =
          static_cast<double*>(tensor.out[Out::count]) + static_cast<Index>(index) * count_of_sums;
#pragma unroll
      for (int k = 0; k < count_of_sums; ++k) {
        to[k] = totals[k];
      }
    }
  }
};

// Between the passes: one block for each tensor computes its rates from the sums of its chunks.
template <typename Rule, typename Table>
MLX_OPT_FN void rates(const Table& table) {
  constexpr int count = sizeof(typename Rule::Sums) / sizeof(float);
  const auto& tensor = table.tensors[blockIdx.x];
  const auto* sums = static_cast<const double*>(tensor.in[0]);
  double totals[count] = {};
#pragma unroll 4
  for (Index chunk = threadIdx.x; chunk < size_of(tensor); chunk += cuda::rates_threads) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      totals[k] += sums[chunk * count + k];
    }
  }
  sums_over_block<cuda::rates_threads>(totals);
  if (threadIdx.x == 0) {
    float narrow[count][1];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      narrow[k][0] = static_cast<float>(totals[k]);
    }
    const Uniforms<Rule>& uniforms = uniforms_of<Rule>(table.group_uniforms, tensor.group);
    *static_cast<typename Rule::Rates*>(tensor.out[0]) =
        Rule::rates(take<typename Rule::Sums>(narrow, 0), uniforms.hypers, uniforms.scalars);
  }
}

// The second pass of a rule that does not read the gradient again updates the parameter from the
// slots that the first has written. W, State: formats of the parameter and its new slots; New: of
// the new parameter.
template <typename Rule, typename W, typename State, typename New, Scaling scaling>
struct Finish : PassBase<Rule, scaling> {
  using Kept = List<W>;
  using In = typename List<W>::template Then<State>;
  using Out = List<New>;
  // The last output is the address of the tensor's rates.
  using Tensor = cuda::Tensor<In::count, 2>;
  static constexpr int first = 0;

  const typename Rule::Rates rates;

  __device__ __forceinline__ Finish(const float* group_uniforms, const Tensor& tensor)
      : PassBase<Rule, scaling>(group_uniforms, tensor.group),
        rates(*static_cast<const typename Rule::Rates*>(tensor.out[1])) {}

  // Runs in reverse order: what the first pass accessed last may still be in the cache.
  MLX_OPT_FN unsigned block() {
    return gridDim.x - 1 - blockIdx.x;
  }

  template <int count>
  __device__ __forceinline__ void apply(float (&x)[In::count][count]) {
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      const auto e = take<typename Rule::Element>(x, lane);
      x[0][lane] = Rule::update(e, this->uniforms.hypers, this->uniforms.scalars, rates);
    }
  }

  __device__ __forceinline__ void end(const Tensor&, unsigned) {}
};

// The second pass of a rule that reads the gradient again. W, State, Format: formats of the
// parameter, of its slots, which are new if the first pass has updated them, and of the gradient;
// New: of what this pass updates, the parameter or the parameter and its slots.
template <typename Rule, typename W, typename State, typename Format, typename New, Scaling scaling>
struct FinishWithGradient : PassBase<Rule, scaling> {
  using Gradient = Format;
  using Rows = typename List<W>::template Then<State>;
  using Kept = typename Choice<FirstPass<Rule>::updates_state, List<W>, Rows>::Type;
  using In = typename Rows::template Then<List<Gradient>>;
  using Out = New;
  // The last output is the address of the tensor's rates.
  using Tensor = cuda::Tensor<In::count, Out::count + 1>;
  static constexpr int first = 0;

  const typename Rule::Rates rates;

  __device__ __forceinline__ FinishWithGradient(const float* group_uniforms, const Tensor& tensor)
      : PassBase<Rule, scaling>(group_uniforms, tensor.group),
        rates(*static_cast<const typename Rule::Rates*>(tensor.out[Out::count])) {}

  MLX_OPT_FN unsigned block() {
    return gridDim.x - 1 - blockIdx.x;
  }

  template <int count>
  __device__ __forceinline__ void apply(float (&x)[In::count][count]) {
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      const auto e = take<typename Rule::Element>(x, lane);
      const float g = this->scaled(x[Rows::count][lane]);
      const auto next = Rule::update(e, g, this->uniforms.hypers, this->uniforms.scalars, rates);
      if constexpr (FirstPass<Rule>::updates_state) {
        x[0][lane] = next;
      } else {
        put(next, lane, x);
      }
    }
  }

  __device__ __forceinline__ void end(const Tensor&, unsigned) {}
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
