// The kernels of a rule of two passes over each tensor, generic over the rule and the storage of
// each operand: common code, the tensor's rates, and the second pass of a rule that does not read
// the gradient again. The first pass is in state_pass.metal.h, the second pass of other rules in
// gradient_pass.metal.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::Share;
using metal::Strided;
using metal::Tensor;

template <bool first, typename A, typename B>
struct Choice {
  using Type = A;
};

template <typename A, typename B>
struct Choice<false, A, B> {
  using Type = B;
};

// The number of floats of a struct.
template <typename T>
struct Floats {
  enum : uint { count = sizeof(T) / sizeof(float) };
};

template <typename Rule>
struct TwoPass {
  enum : uint {
    fields = Floats<typename Rule::Element>::count,
    sums = Floats<typename Rule::Sums>::count,
    rates = Floats<typename Rule::Rates>::count,
  };

  // Element `lane` of `count`, stored field by field.
  template <int count>
  MLX_OPT_FN typename Rule::Element element(thread const float* x, int lane) {
    float values[fields];
    for (uint k = 0; k < fields; ++k) {
      values[k] = x[k * count + lane];
    }
    return gathered<typename Rule::Element>(&values[0]);
  }
};

// For operands of any layout: calls `each.element(places, i)` for this thread's elements of the
// threadgroup. Index: the type of element indices.
template <typename Index, int operands, typename Each>
MLX_OPT_FN void over_strided(
    thread Each& each, constant Strided<operands>& tensor, uint group, uint index) {
  const ulong begin = static_cast<ulong>(group) * chunk;
  const uint count = at_most(tensor.size - begin, chunk);
  for (uint i = index; i < count; i += threads) {
    long places[operands];
    locate(tensor.layout, static_cast<Index>(begin + i), places);
    each.element(places, begin + i);
  }
}

// Computes a tensor's rates from its sums. Run by one threadgroup.
template <typename Rule>
struct TensorRates {
  using Of = TwoPass<Rule>;

  MLX_OPT_FN void run(
      constant Share& share,
      constant float* group_uniforms,
      device const float* sums,
      device float* rates,
      uint index,
      threadgroup float* staged) {
    float totals[Of::sums];
    for (uint k = 0; k < Of::sums; ++k) {
      LongSum sum = {0.0f, 0.0f};
      for (uint i = index; i < share.count; i += threads) {
        sum = plus(sum, sums[(static_cast<ulong>(share.first) + i) * Of::sums + k]);
      }
      totals[k] = sum_over_group(value_of(sum), index, staged);
    }
    if (index == 0) {
      const auto uniforms = uniforms_of<Rule>(group_uniforms, share.group);
      const auto own =
          Rule::rates(gathered<typename Rule::Sums>(&totals[0]), uniforms.hypers, uniforms.scalars);
      thread const float* from = reinterpret_cast<thread const float*>(&own);
      for (uint k = 0; k < Of::rates; ++k) {
        rates[k] = from[k];
      }
    }
  }
};

// The second pass. State: formats of the new slots, which have the layout of the results; Out: of
// the new parameter.
template <typename Rule, typename W, typename State, typename Out, Scaling scaling>
struct Parameter {
  using Of = TwoPass<Rule>;

  struct Operands {
    const device uchar* in[Of::fields]; // parameter, new slots
    device uchar* out[1];               // may be the parameter's buffer
  };

  // `rates`: the tensor's.
  MLX_OPT_FN void flat(
      Operands at,
      constant Tensor& tensor,
      constant float* group_uniforms,
      device const float* rates,
      uint group,
      uint index) {
    Each each = each_of(at, group_uniforms, tensor.group, rates);
    const ulong begin = static_cast<ulong>(group - tensor.first_chunk) * chunk;
    over_chunk(each, begin, tensor.size, tensor.vectors, index);
  }

  // A parameter of any layout.
  template <typename Index>
  MLX_OPT_FN void strided(
      Operands at,
      constant Strided<1>& tensor,
      constant float* group_uniforms,
      device const float* rates,
      uint group,
      uint index) {
    Each each = each_of(at, group_uniforms, tensor.group, rates);
    over_strided<Index>(each, tensor, group, index);
  }

 private:
  struct Each {
    Operands at;
    Uniforms<Rule> uniforms;
    typename Rule::Rates rates;

    template <int count>
    void elements(ulong i) {
      Parameter::elements<count>(at, i, i, uniforms, rates);
    }

    void element(thread const long* places, ulong i) {
      Parameter::elements<1>(at, static_cast<ulong>(places[0]), i, uniforms, rates);
    }
  };

  MLX_OPT_FN Each
  each_of(Operands at, constant float* group_uniforms, uint group, device const float* rates) {
    return {at, uniforms_of<Rule>(group_uniforms, group), gathered<typename Rule::Rates>(rates)};
  }

  // `from`: the index in the parameter; the results are stored to the elements [to, to + count).
  template <int count>
  MLX_OPT_FN void elements(
      Operands at, ulong from, ulong to, Uniforms<Rule> uniforms, typename Rule::Rates rates) {
    if (scaling == Scaling::if_finite && !is_finite(uniforms.scale.factor)) {
      for (int lane = 0; lane < count; ++lane) {
        Copy<W, Out>::run(at.in[0], from + lane, at.out[0], to + lane);
      }
      return;
    }
    ulong places[Of::fields - 1];
    for (uint k = 0; k < Of::fields - 1; ++k) {
      places[k] = to;
    }
    float x[Of::fields * count];
    Access<W, count>::load(at.in[0], from, x);
    State::template load<count>(at.in + 1, places, x + count);
    for (int lane = 0; lane < count; ++lane) {
      x[lane] = Rule::update(
          Of::template element<count>(x, lane), uniforms.hypers, uniforms.scalars, rates);
    }
    Access<Out, count>::store(at.out[0], to, x);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
