// The functions and macros that rules use, and the only file that distinguishes the compilers that
// read them: a C++ compiler, NVRTC and Metal. Rules take and return values and include only this
// file.
#pragma once

#if defined(__METAL_VERSION__)
#define MLX_OPT_FN static inline
#elif defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define MLX_OPT_FN static __device__ __forceinline__
#else
#define MLX_OPT_FN static inline __attribute__((always_inline))
#endif

// The CPU backend compiles the rules once per instruction set; each copy needs its own symbols.
#if !defined(MLX_OPT_LEVEL)
#define MLX_OPT_LEVEL portable
#if !defined(__METAL_VERSION__) && !defined(__CUDACC_RTC__) && !defined(__CUDACC__)
#define MLX_OPT_DESCRIBES
#endif
#endif
#define MLX_OPT_RULES_BEGIN \
  namespace mlx_opt {       \
  namespace MLX_OPT_LEVEL {
#define MLX_OPT_RULES_END \
  }                       \
  }

// Only the host reads a rule's description; see describe.h.
#if defined(MLX_OPT_DESCRIBES)
#include "describe.h"
#define MLX_OPT_DESCRIBE(...) static constexpr Description description = __VA_ARGS__;
#else
#define MLX_OPT_DESCRIBE(...)
#endif

namespace mlx_opt {

// What is done with a gradient before a rule sees it: it is multiplied, and then clipped to at most
// `bound` from 0, which may be infinite.
struct Scale {
  float factor, bound;
};

} // namespace mlx_opt

MLX_OPT_RULES_BEGIN

// A hyperparameter x as the rules use it. If x is a constant, 1 - x and the logarithm are computed
// in double precision: 1.0f - 0.999f is off by 1.3e-5.
struct Hyper {
  float value;
  float one_minus;
  float log;
};

// fma(a, b, c) is a * b + c, rounded once if the machine can. Rules say which products are fused:
// if the compiler decided, equal elements could get different results at different positions.
#if defined(__METAL_VERSION__)
MLX_OPT_FN float square_root(float x) {
  return ::metal::precise::sqrt(x);
}
MLX_OPT_FN float absolute(float x) {
  return ::metal::fabs(x);
}
MLX_OPT_FN float fma(float a, float b, float c) {
  return ::metal::fma(a, b, c);
}
// exp(x) - 1 without cancellation, because Metal has no expm1. Where exp(x) is near 1: its series
// at x / 4, doubled twice.
MLX_OPT_FN float exp_minus_one(float x) {
  if (absolute(x) > 1.0f) {
    return ::metal::precise::exp(x) - 1.0f;
  }
  float y = 0.25f * x;
  float e = fma(y, 1.0f / 720, 1.0f / 120);
  e = fma(e, y, 1.0f / 24);
  e = fma(e, y, 1.0f / 6);
  e = fma(e, y, 0.5f);
  e = fma(e * y, y, y);
  e = fma(e, e, 2.0f * e);
  return fma(e, e, 2.0f * e);
}
MLX_OPT_FN float power(float x, float y) {
  return ::metal::precise::pow(x, y);
}
MLX_OPT_FN int as_int(float x) {
  return as_type<int>(x);
}
MLX_OPT_FN float as_float(int bits) {
  return as_type<float>(bits);
}
#elif defined(__CUDACC_RTC__) || defined(__CUDACC__)
MLX_OPT_FN float power(float x, float y) {
  return powf(x, y);
}
MLX_OPT_FN float square_root(float x) {
  return sqrtf(x);
}
MLX_OPT_FN float absolute(float x) {
  return fabsf(x);
}
MLX_OPT_FN float exp_minus_one(float x) {
  return expm1f(x);
}
MLX_OPT_FN float fma(float a, float b, float c) {
  return fmaf(a, b, c);
}
MLX_OPT_FN int as_int(float x) {
  return __float_as_int(x);
}
MLX_OPT_FN float as_float(int bits) {
  return __int_as_float(bits);
}
#else
MLX_OPT_FN float power(float x, float y) {
  return __builtin_powf(x, y);
}
MLX_OPT_FN float square_root(float x) {
  return __builtin_sqrtf(x);
}
MLX_OPT_FN float absolute(float x) {
  return __builtin_fabsf(x);
}
MLX_OPT_FN float exp_minus_one(float x) {
  return __builtin_expm1f(x);
}
MLX_OPT_FN float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
MLX_OPT_FN int as_int(float x) {
  return __builtin_bit_cast(int, x);
}
MLX_OPT_FN float as_float(int bits) {
  return __builtin_bit_cast(float, bits);
}
#endif

// The larger of the two; NaN if either is.
MLX_OPT_FN float maximum(float a, float b) {
  return (a > b || a != a) ? a : b;
}

// The smaller of the two; NaN if either is.
MLX_OPT_FN float minimum(float a, float b) {
  return (a < b || a != a) ? a : b;
}

MLX_OPT_FN float where(bool condition, float a, float b) {
  return condition ? a : b;
}

MLX_OPT_FN float infinity() {
  return as_float(0x7f800000);
}

// x, but at most `bound` from 0; NaN if x is.
MLX_OPT_FN float clamped(float x, float bound) {
  return x > bound ? bound : (x < -bound ? -bound : x);
}

MLX_OPT_FN float scaled(Scale scale, float gradient) {
  return clamped(scale.factor * gradient, scale.bound);
}

// The value of a slot that begins unset, or `first` while it is unset.
MLX_OPT_FN float value_or(float slot, float first) {
  return slot == slot ? slot : first;
}

// -1, 0 or 1; 0 for NaN, as mx.sign.
MLX_OPT_FN float sign(float x) {
  return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : 0.0f);
}

// True if both have the same sign, and neither is 0.
MLX_OPT_FN bool agree(float a, float b) {
  return sign(a) * sign(b) > 0.0f;
}

// rate * x, but 0 if the rate is 0, even for an infinite or NaN x.
MLX_OPT_FN float scaled(float rate, float x) {
  return rate == 0.0f ? 0.0f : rate * x;
}

// The decay of w: rate * w, but 0 for an infinite w.
MLX_OPT_FN float decay_of(float w, float rate) {
  return absolute(w) <= 3.402823466e38f ? rate * w : 0.0f;
}

// The rates of weight decay in a step: what is added to the gradient, times w, and what w loses.
// One is 0.
struct DecayRates {
  float coupled, decoupled;
};

MLX_OPT_FN DecayRates decay_rates(bool decoupled, Hyper decay, float lr) {
  return {decoupled ? 0.0f : decay.value, decoupled ? lr * decay.value : 0.0f};
}

// The kinds of weight decay, in the order of `decay_kinds` in describe.h: added to the gradient;
// subtracted from w times the learning rate; subtracted as it is (Wortsman et al.,
// arXiv:2309.14322); subtracted times the square of the learning rate over its greatest value
// (Defazio, arXiv:2506.02285).
enum class DecayKind { coupled, decoupled, independent, corrected };

// Weight decay of any kind. `cautious`: decay only where the update shrinks w too (Chen et al.,
// arXiv:2510.12402).
struct WeightDecay {
  Hyper rate, kind, max_lr, cautious;
};

MLX_OPT_FN bool has_kind(WeightDecay decay, DecayKind kind) {
  return decay.kind.value == static_cast<float>(static_cast<int>(kind));
}

MLX_OPT_FN DecayRates decay_rates(WeightDecay decay, float lr) {
  float factor = has_kind(decay, DecayKind::independent) ? 1.0f : lr;
  if (has_kind(decay, DecayKind::corrected)) {
    factor *= lr / decay.max_lr.value;
  }
  return decay_rates(!has_kind(decay, DecayKind::coupled), decay.rate, factor);
}

// What w loses to decay that is not added to the gradient; `update` is subtracted from w too.
MLX_OPT_FN float decay_of(float w, float update, WeightDecay decay, DecayRates rates) {
  bool decays = decay.cautious.value == 0.0f || update * w >= 0.0f;
  return decays ? decay_of(w, rates.decoupled) : 0.0f;
}

// The cube root of x >= 0. Dividing the bits by 3 divides the exponent by 3 and gives an estimate
// within 4 %; each step of Halley's method triples its correct digits. The scaling avoids denormal
// numbers, whose bits do not approximate a logarithm, and overflow.
MLX_OPT_FN float cube_root(float x) {
  bool small = x < 1e-30f;
  float v = x * (small ? 16777216.0f : 1.0f / 16777216);
  float y = as_float(static_cast<int>(static_cast<float>(as_int(v)) * (1.0f / 3) + 709958130.0f));
  for (int i = 0; i < 2; ++i) {
    float cube = y * y * y;
    y = fma(y, (v - cube) / fma(2.0f, cube, v), y);
  }
  return x > 0.0f && x <= 3.402823466e38f ? y * (small ? 1.0f / 256 : 256.0f) : x;
}

// atan2(y, x) for x >= 0: a polynomial in the square of the smaller over the larger, which is
// within 2e-8 of the arc tangent.
MLX_OPT_FN float angle(float y, float x) {
  float size = absolute(y);
  bool steep = size > x;
  float small = steep ? x : size;
  float large = steep ? size : x;
  float equal = large > 0.0f ? 1.0f : 0.0f; // the ratio of equal numbers, 0 and infinity too
  float r = small == large ? equal : small / large;
  float z = r * r;
  float p = fma(z, 0.002849889226f, -0.01606862726f);
  p = fma(z, p, 0.04269151632f);
  p = fma(z, p, -0.07504294273f);
  p = fma(z, p, 0.1064093389f);
  p = fma(z, p, -0.1420364443f);
  p = fma(z, p, 0.1999261939f);
  p = fma(z, p, -0.3333307334f);
  p = fma(z, p, 0.9999999848f) * r;
  p = steep ? 1.57079632679f - p : p;
  return y < 0.0f ? -p : p;
}

// exp(-x) for x >= 0: a power of 2 times a polynomial, within 1e-7; 1e-38 where it is less.
MLX_OPT_FN float exp_of_minus(float x) {
  float t = minimum(1.44269504089f * x, 126.0f);
  int n = static_cast<int>(t < 126.0f ? t + 0.5f : 126.0f); // of NaN too, which has no int
  float r = static_cast<float>(n) - t;
  float p = fma(r, 0.001327647273f, 0.009675541326f);
  p = fma(r, p, 0.05550713271f);
  p = fma(r, p, 0.2402211972f);
  p = fma(r, p, 0.6931469671f);
  p = fma(r, p, 1.0f);
  return p * as_float((127 - n) * (1 << 23));
}

// 1 - x^n.
MLX_OPT_FN float one_minus_power(Hyper x, float n) {
  return -exp_minus_one(n * x.log);
}

// The progress of a warm-up of `steps` steps, from 0 to 1.
MLX_OPT_FN float progress(float step, Hyper steps) {
  return minimum(step / maximum(steps.value, 1.0f), 1.0f);
}

// The logarithm of a beta whose half-life is `done` of the way between those of two others.
MLX_OPT_FN float log_between(Hyper first, Hyper last, float done) {
  return 1.0f / ((1.0f - done) / first.log + done / last.log);
}

MLX_OPT_RULES_END
