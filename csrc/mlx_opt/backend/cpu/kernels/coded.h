// A direct loop over elements whose slots all have codes, with vectors by hand. A rule's division
// and root leave a processor time for the codes, so one vector goes through the rule while one of
// an earlier block is encoded. For one instruction set; included by elementwise.cpp only.
#pragma once

#include "mlx_opt/backend/cpu/kernels/element.h"
#include "mlx_opt/backend/cpu/kernels/operand.h"
#include "mlx_opt/backend/cpu/kernels/rounding.h"

#if defined(__AVX512BW__)

MLX_OPT_RULES_BEGIN
namespace {

template <typename Rule, typename Uniforms>
class CodedLoop {
 public:
  // True if a tensor is as this loop has it: a parameter and a gradient that are contiguous, in
  // float32 or both in bfloat16, and no slots without codes.
  static bool takes(const Tensor& tensor) {
    const Storage storage = tensor.in[0].storage;
    bool usual = storage == Storage::float32 || storage == Storage::bfloat16;
    for (int k = 0; k <= fields; k += fields) {
      usual &= tensor.in[k].storage == storage && !tensor.in[k].layout;
    }
    usual &= tensor.out[0].storage == storage && tensor.masters == MasterWeights::none;
    for (int k = 1; k < fields; ++k) {
      const Storage codes = is_signed(k) ? Storage::int8 : Storage::uint8;
      usual &= tensor.in[k].storage == codes && tensor.out[k].storage == codes;
    }
    return fields > 1 && usual;
  }

  // Updates whole blocks from element `begin` on. Returns the end of the last.
  static int64_t run(const Tensor& tensor, int64_t begin, int64_t end, const Uniforms uniforms) {
    return tensor.in[0].storage == Storage::bfloat16 ? run<BFloat16>(tensor, begin, end, uniforms)
                                                     : run<Float32>(tensor, begin, end, uniforms);
  }

 private:
  using Element = typename Rule::Element;
  static constexpr int fields = sizeof(Element) / sizeof(float);
  static constexpr int64_t size = elements_of_block;
  // A block is encoded so much later than it is updated: its scale is known by then.
  static constexpr int64_t delay = 2 * size;
  static constexpr int64_t kept = 2 * delay;

  static constexpr bool is_signed(int k) {
    return Rule::description.slots[k - 1].codes != mlx_opt::Codes::not_negative;
  }

  struct Slot {
    const uint8_t* in;
    uint8_t* out;
    const float* in_scales;
    float* out_scales;
  };

  // NaN's codes have no sign.
  __attribute__((noinline, cold)) static void clear_nan(float* x) {
    for (int i = 0; i < size; ++i) {
      x[i] = x[i] == x[i] ? x[i] : as_float(0x7fc00000);
    }
  }

  template <typename Format>
  static int64_t run(const Tensor& tensor, int64_t begin, int64_t end, const Uniforms uniforms) {
    using Stored = typename Format::Stored;
    alignas(64) float states[fields][kept];
    float reciprocals[fields][kept / size];
    Slot slots[fields];
    for (int k = 1; k < fields; ++k) {
      const Operand &in = tensor.in[k], &out = tensor.out[k];
      slots[k] = {
          at<const uint8_t>(in, begin),
          at<uint8_t>(out, begin),
          in.scales + begin / size,
          out.scales + begin / size};
    }
    const Stored* w = at<const Stored>(tensor.in[0], begin);
    const Stored* gradient = at<const Stored>(tensor.in[fields], begin);
    Stored* to_w = at<Stored>(tensor.out[0], begin);
    const int64_t count = (end - begin) / size * size;
    const bool rounds = tensor.rounds;
    const unsigned key = rounding_key(tensor.rounding_key, uniforms.step, 0);
    const auto encode = [&](int64_t i, int k) __attribute__((always_inline)) {
      const Floats x = load_floats(states[k] + i % kept);
      const Floats factor = _mm512_set1_ps(reciprocals[k][i / size % (kept / size)]);
      const Ints codes =
          is_signed(k) ? encoded(SignedCodes{}, x, factor) : encoded(UnsignedCodes{}, x, factor);
      const __m128i bytes = _mm512_cvtepi32_epi8(codes);
      __builtin_memcpy(slots[k].out + i, &bytes, sizeof bytes);
    };
    for (int64_t i = 0; i < count; i += size) {
      const bool encodes = i >= delay;
      Ints largest[fields];
      for (int k = 1; k < fields; ++k) {
        prefetch(slots[k].in + i);
        largest[k] = _mm512_setzero_si512();
      }
#pragma GCC unroll 1
      for (int64_t j = i; j < i + size; j += lanes) {
        float from[fields + 1][lanes], to[fields][lanes];
        prefetch(w + j);
        prefetch(gradient + j);
        widen_lanes<Format>(w + j, from[0]);
        widen_lanes<Format>(gradient + j, from[fields]);
        for (int k = 1; k < fields; ++k) {
          const Floats scale = _mm512_set1_ps(slots[k].in_scales[i / size]);
          store_floats(
              from[k],
              is_signed(k)
                  ? decoded(SignedCodes{}, reinterpret_cast<const int8_t*>(slots[k].in + j), scale)
                  : decoded(UnsignedCodes{}, slots[k].in + j, scale));
        }
        for (int lane = 0; lane < lanes; ++lane) {
          const float g = uniforms.scale * from[fields][lane];
          put(to, lane, Rule::update(take<Element>(from, lane), g, uniforms.h, uniforms.s));
        }
        if constexpr (__is_same(Format, BFloat16)) {
          const Floats x = load_floats(to[0]);
          store_halves(
              to_w + j,
              rounds ? rounded_lanes(x, key, static_cast<unsigned>(begin + j))
                     : narrowed(Format{}, x));
        } else {
          narrow_lanes<Format>(to[0], to_w + j);
        }
        for (int k = 1; k < fields; ++k) {
          const Floats x = load_floats(to[k]);
          largest[k] = _mm512_max_epi32(largest[k], sizes(x));
          store_floats(states[k] + j % kept, x);
        }
        if (encodes) {
          for (int k = 1; k < fields; ++k) {
            encode(j - delay, k);
          }
        }
      }
      for (int k = 1; k < fields; ++k) {
        float& scale = slots[k].out_scales[i / size];
        measure(largest[k], &scale, &reciprocals[k][i / size % (kept / size)]);
        if (__builtin_expect(scale != scale, 0)) {
          clear_nan(states[k] + i % kept);
        }
      }
    }
    for (int64_t j = count > delay ? count - delay : 0; j < count; j += lanes) {
      for (int k = 1; k < fields; ++k) {
        encode(j, k);
      }
    }
    return begin + count;
  }
};

} // namespace
MLX_OPT_RULES_END

#endif
