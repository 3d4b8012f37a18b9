// All elementwise rules for one instruction set. The build compiles this file once for each level,
// with the level's flags and with MLX_OPT_LEVEL set to its name, so it must not use inline
// functions of other headers.
#define MLX_OPT_DESCRIBES // for the codes of slots
#include <type_traits>

#include "mlx_opt/backend/cpu/kernels/coded.h"
#include "mlx_opt/backend/cpu/kernels/element.h"
#include "mlx_opt/backend/cpu/kernels/rounding.h"
#include "mlx_opt/backend/cpu/kernels/rule.h"

// Tells the compiler to vectorise the loop: an output may be the buffer of an input, but only
// element by element.
#if defined(__AVX2__)
#define MLX_OPT_INDEPENDENT
#elif defined(__clang__)
#define MLX_OPT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define MLX_OPT_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

// True if the loops here are vectorised by hand; elsewhere a prefetch would prevent the compiler's
// vectorisation.
#if defined(__AVX2__)
constexpr bool by_hand = true;
#else
constexpr bool by_hand = false;
#endif

typedef float Vector __attribute__((vector_size(lanes * sizeof(float))));

MLX_OPT_FN Vector vector_of(const float* values) {
  Vector vector;
  __builtin_memcpy(&vector, values, sizeof vector);
  return vector;
}

// `first`: the index in the tensor of the first of these elements.
MLX_OPT_ONE_COPY void round_all(float* x, unsigned count, unsigned key, unsigned first) {
  for (unsigned i = 0; i < count; ++i) {
    x[i] = rounded(x[i], key, first + i);
  }
}

template <typename Rule>
struct Driver {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::Scalars;
  using Element = typename Rule::Element;

  static constexpr int fields = fields_of<Rule>;

  // The scalars that all elements of a step share.
  struct Uniforms {
    Hypers h;
    Scalars s;
    float scale; // 1 leaves every gradient as it is, so one loop serves steps with and without
    float step;  // its number, for stochastic rounding
  };

  static void run(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      float step) {
    Uniforms uniforms;
    __builtin_memcpy(&uniforms.h, hypers, sizeof uniforms.h);
    __builtin_memcpy(&uniforms.s, scalars, sizeof uniforms.s);
    uniforms.scale = scale.factor;
    uniforms.step = step;
    dispatch(tensor, begin, end, uniforms, scale);
  }

  // As run, with the squares of the updates and the new parameters, of float32 arrays that are
  // processed directly from memory, in whole vectors; see cpu::Kernel. In bfloat16 the processor
  // and not the memory limits a step, and a loop of its own gains nothing.
  static int64_t run_with_squares(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      double* totals) {
    const bool is_direct = scale.bound == infinity() && tensor.masters == MasterWeights::none;
    if (!is_direct || !all_are(tensor, Storage::float32)) {
      return begin;
    }
    Uniforms uniforms;
    __builtin_memcpy(&uniforms.h, hypers, sizeof uniforms.h);
    __builtin_memcpy(&uniforms.s, scalars, sizeof uniforms.s);
    uniforms.scale = scale.factor;
    const int64_t count = (end - begin) / lanes * lanes;
    direct_with_squares(tensor, begin, count, uniforms, totals);
    return begin + count;
  }

  // Gradients are clipped in blocks, and results rounded stochastically, so that the loops need not
  // know of it.
  static void dispatch(
      const Tensor& tensor, int64_t begin, int64_t end, const Uniforms& uniforms, Scale scale) {
    if (scale.bound != infinity()) {
      staged_all(tensor, begin, end, uniforms, &scale);
    } else if (tensor.rounds) {
      dispatch_rounding(tensor, begin, end, uniforms);
    } else if (tensor.masters != MasterWeights::none) {
      dispatch_masters(tensor, begin, end, uniforms);
    } else if (all_are(tensor, Storage::float32)) {
      direct<Float32>(tensor, begin, end, uniforms);
    } else if (all_are(tensor, Storage::bfloat16)) {
      direct<BFloat16>(tensor, begin, end, uniforms);
    } else if (all_are(tensor, Storage::float16)) {
      direct<Float16>(tensor, begin, end, uniforms);
    } else {
#if defined(__AVX512BW__)
      if constexpr (Rule::description.is_common) {
        using Loop = CodedLoop<Rule, Uniforms>;
        if (Loop::takes(tensor)) {
          begin = Loop::run(tensor, begin, end, uniforms);
        }
      }
#endif
      staged_all(tensor, begin, end, uniforms, nullptr);
    }
  }

  // `clipping`: how the gradient is scaled and clipped; null if it is only scaled.
  static void staged_all(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const Uniforms& uniforms,
      const Scale* clipping) {
    if (cpu::has_panels(tensor, tensor.in[fields])) {
      const auto visit = [&](int64_t first, int64_t count, const float* gradient) {
        staged(tensor, first, count, gradient, uniforms, clipping);
      };
      for_each_row_of_panels(tensor.in[fields], begin, end, visit);
      return;
    }
    for (; begin < end; begin += block) {
      const int64_t count = end - begin < block ? end - begin : block;
      staged(tensor, begin, count, nullptr, uniforms, clipping);
    }
  }

  static void dispatch_rounding(
      const Tensor& tensor, int64_t begin, int64_t end, const Uniforms& uniforms) {
#if defined(__AVX512BW__)
    if constexpr (Rule::description.is_common) {
      using Loop = CodedLoop<Rule, Uniforms>;
      if (all_are(tensor, Storage::bfloat16)) {
        begin = direct_rounding(tensor, begin, end, uniforms);
      } else if (Loop::takes(tensor)) {
        begin = Loop::run(tensor, begin, end, uniforms);
      }
    }
#endif
    staged_all(tensor, begin, end, uniforms, nullptr);
  }

#if defined(__AVX512BW__)

  // Updates whole vectors from element `begin` on, and rounds all results stochastically. Returns
  // the end of the last vector.
  static int64_t direct_rounding(
      const Tensor& tensor, int64_t begin, int64_t end, const Uniforms uniforms) {
    const uint16_t* in[fields + 1];
    uint16_t* out[fields];
    unsigned keys[fields];
    for (int k = 0; k <= fields; ++k) {
      in[k] = at<const uint16_t>(tensor.in[k], 0);
    }
    for (int k = 0; k < fields; ++k) {
      out[k] = at<uint16_t>(tensor.out[k], 0);
      keys[k] = rounding_key(tensor.rounding_key, uniforms.step, k);
    }
    for (; begin + lanes <= end; begin += lanes) {
      for (int k = 0; k <= fields; ++k) {
        prefetch(in[k] + begin);
      }
      float to[fields][lanes];
      compute<BFloat16, true>(in, begin, uniforms, to);
      for (int k = 0; k < fields; ++k) {
        const Floats x = load_floats(to[k]);
        store_halves(out[k] + begin, rounded_lanes(x, keys[k], static_cast<unsigned>(begin)));
      }
    }
    return begin;
  }

#endif

  static bool all_are(const Tensor& tensor, Storage storage) {
    bool same = true;
    for (int k = 0; k <= fields; ++k) {
      same &= tensor.in[k].storage == storage && !tensor.in[k].layout;
    }
    for (int k = 0; k < fields; ++k) {
      same &= tensor.out[k].storage == storage;
    }
    return same;
  }

  static void dispatch_masters(
      const Tensor& tensor, int64_t begin, int64_t end, const Uniforms& uniforms) {
    if (!has_usual_masters(tensor)) {
      staged_all(tensor, begin, end, uniforms, nullptr);
    } else if (tensor.masters == MasterWeights::float32) {
      direct_on_masters<Float32>(tensor, begin, end, uniforms);
    } else {
      direct_on_masters<Bits16>(tensor, begin, end, uniforms);
    }
  }

  // True for contiguous operands, in bfloat16 the parameter and the gradient, in float32 the slots
  // before and after the step.
  static bool has_usual_masters(const Tensor& tensor) {
    const bool is_whole = tensor.masters == MasterWeights::float32;
    bool usual = true;
    for (int k = 0; k <= fields + 1; ++k) {
      const bool is_half = k == 0 || k == fields;
      const Storage of_master = is_whole ? Storage::float32 : Storage::bits16;
      const Storage storage = is_half      ? Storage::bfloat16
                              : k > fields ? of_master
                                           : Storage::float32;
      usual &= tensor.in[k].storage == storage && !tensor.in[k].layout;
    }
    for (int k = 1; k < fields; ++k) {
      usual &= tensor.out[k].storage == Storage::float32;
    }
    return usual;
  }

  // The parameter and its master keep their storages.
  template <typename Master>
  static void direct_on_masters(
      const Tensor& tensor, int64_t begin, int64_t end, const Uniforms& uniforms) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      update_masters<Master>(tensor, i, uniforms);
    }
    if (i < end) {
      staged(tensor, i, end - i, nullptr, uniforms, nullptr);
    }
  }

  // Updates one vector. Master: Float32, or Bits16 of remainders.
  template <typename Master>
  MLX_OPT_FN void update_masters(const Tensor& tensor, int64_t i, const Uniforms& uniforms) {
    using Stored = typename Master::Stored;
    constexpr bool is_whole = std::is_same_v<Master, Float32>;
    const auto* w = at<const uint16_t>(tensor.in[0], i);
    const auto* gradient = at<const uint16_t>(tensor.in[fields], i);
    const auto* master = at<const Stored>(tensor.in[fields + 1], i);
    float from[fields + 1][lanes], to[fields][lanes], masters[lanes], rounded[lanes];
    prefetch(w), prefetch(gradient), prefetch(master);
    widen_lanes<BFloat16>(w, from[0]);
    widen_lanes<BFloat16>(gradient, from[fields]);
    widen_lanes<Master>(master, masters);
    if constexpr (is_whole) {
      uint16_t narrow[lanes];
      narrow_lanes<BFloat16>(masters, narrow);
      widen_lanes<BFloat16>(narrow, rounded);
    }
    for (int k = 1; k < fields; ++k) {
      prefetch(at<const float>(tensor.in[k], i));
      widen_lanes<Float32>(at<const float>(tensor.in[k], i), from[k]);
    }
    for (int lane = 0; lane < lanes; ++lane) {
      float& weight = from[0][lane];
      weight = is_whole ? weight_of(weight, masters[lane], rounded[lane])
                        : joined(weight, masters[lane]);
      const float g = uniforms.scale * from[fields][lane];
      put(to, lane, Rule::update(take<Element>(from, lane), g, uniforms.h, uniforms.s));
      const Split parts = is_whole ? Split{to[0][lane], to[0][lane]} : split(to[0][lane]);
      to[0][lane] = parts.w;
      masters[lane] = parts.remainder;
    }
    narrow_lanes<BFloat16>(to[0], at<uint16_t>(tensor.out[0], i));
    narrow_lanes<Master>(masters, at<Stored>(tensor.out[fields], i));
    for (int k = 1; k < fields; ++k) {
      narrow_lanes<Float32>(to[k], at<float>(tensor.out[k], i));
    }
  }

  template <typename Format>
  static void direct(const Tensor& tensor, int64_t begin, int64_t end, const Uniforms& uniforms) {
    using Stored = typename Format::Stored;
    const Stored* in[fields + 1];
    Stored* out[fields];
    for (int k = 0; k <= fields; ++k) {
      in[k] = at<const Stored>(tensor.in[k], begin);
    }
    for (int k = 0; k < fields; ++k) {
      out[k] = at<Stored>(tensor.out[k], begin);
    }
    // In bfloat16 the processor, not the memory, limits some rules: a step that scales nothing gets
    // a loop without the multiplication.
    if constexpr (std::is_same_v<Format, BFloat16>) {
      if (uniforms.scale == 1.0f) {
        loop<Format, by_hand, false>(in, out, end - begin, uniforms);
        return;
      }
    }
    loop<Format, by_hand, true>(in, out, end - begin, uniforms);
  }

  // The squares of some elements are summed in float32, these sums in double. The sums are vectors,
  // and not arrays, because with more arrays the compiler would not vectorise the update.
  static void direct_with_squares(
      const Tensor& tensor, int64_t begin, int64_t count, const Uniforms uniforms, double* totals) {
    constexpr int64_t longest = 1024;
    const float* in[fields + 1];
    float* out[fields];
    for (int k = 0; k <= fields; ++k) {
      in[k] = at<const float>(tensor.in[k], begin);
    }
    for (int k = 0; k < fields; ++k) {
      out[k] = at<float>(tensor.out[k], begin);
    }
    for (int64_t i = 0; i < count;) {
      const int64_t stop = i + longest < count ? i + longest : count;
      Vector updates = {}, parameters = {};
      for (; i < stop; i += lanes) {
        for (int k = 0; k <= fields; ++k) {
          prefetch(in[k] + i);
        }
        const Vector before = vector_of(in[0] + i);
        update<Float32, true>(in, out, i, uniforms);
        const Vector after = vector_of(out[0] + i);
        updates += (after - before) * (after - before);
        parameters += after * after;
      }
      for (int lane = 0; lane < lanes; ++lane) {
        totals[0] += updates[lane];
        totals[1] += parameters[lane];
      }
    }
  }

  // Updates at most `block` elements. `gradient`: the gradient's values if they are already loaded,
  // else null.
  MLX_OPT_ONE_COPY static void staged(
      const Tensor& tensor,
      int64_t begin,
      int64_t count,
      const float* gradient,
      Uniforms uniforms,
      const Scale* clipping) {
    alignas(64) float buffers[fields + 1][block];
    const float* in[fields + 1];
    float* out[fields];
    for (int k = 0; k < fields; ++k) {
      in[k] = load(tensor.in[k], begin, count, buffers[k]);
      out[k] = place(tensor.out[k], begin, buffers[k]);
    }
    if (tensor.masters != MasterWeights::none) {
      const Operand& master = tensor.in[fields + 1];
      take_masters(tensor.masters, tensor.in[0].storage, master, begin, count, buffers[0]);
      out[0] = place(tensor.out[fields], begin, buffers[0]);
    }
    in[fields] = gradient ? gradient : load(tensor.in[fields], begin, count, buffers[fields]);
    if (clipping) {
      in[fields] = clipped(*clipping, in[fields], count, buffers[fields]);
      uniforms.scale = 1.0f;
    }
    loop<Float32, false, true>(in, out, count, uniforms); // load has prefetched
    if (tensor.masters == MasterWeights::remainder) {
      put_remainders(tensor.out[fields], begin, count, buffers[0]);
    }
    for (int k = 0; k < fields; ++k) {
      if (tensor.rounds && tensor.out[k].storage == Storage::bfloat16) {
        const unsigned key = rounding_key(tensor.rounding_key, uniforms.step, k);
        round_all(out[k], static_cast<unsigned>(count), key, static_cast<unsigned>(begin));
      }
      store(tensor.out[k], begin, count, out[k]);
    }
  }

  template <
      typename Format,
      bool prefetches,
      bool scales,
      typename Stored = typename Format::Stored>
  static void loop(
      const Stored* const (&in)[fields + 1],
      Stored* const (&out)[fields],
      int64_t count,
      const Uniforms uniforms) {
    int64_t i = 0;
    MLX_OPT_INDEPENDENT
    for (; i + lanes <= count; i += lanes) {
      if constexpr (prefetches) {
        for (int k = 0; k <= fields; ++k) {
          prefetch(in[k] + i);
        }
      }
      update<Format, scales>(in, out, i, uniforms);
    }
    if (i < count) {
      tail<Format>(in, out, i, count - i, uniforms);
    }
  }

  // Updates fewer elements than a vector has lanes.
  template <typename Format, typename Stored = typename Format::Stored>
  static void tail(
      const Stored* const (&in)[fields + 1],
      Stored* const (&out)[fields],
      int64_t from,
      int64_t count,
      const Uniforms& uniforms) {
    Stored values[fields + 1][lanes] = {};
    const Stored* padded_in[fields + 1];
    Stored* padded_out[fields];
    for (int k = 0; k <= fields; ++k) {
      __builtin_memcpy(values[k], in[k] + from, count * sizeof(Stored));
      padded_in[k] = values[k];
    }
    for (int k = 0; k < fields; ++k) {
      padded_out[k] = values[k];
    }
    update<Format, true>(padded_in, padded_out, 0, uniforms);
    for (int k = 0; k < fields; ++k) {
      __builtin_memcpy(out[k] + from, values[k], count * sizeof(Stored));
    }
  }

  // Updates one vector. The compiler keeps the arrays in registers.
  template <typename Format, bool scales, typename Stored = typename Format::Stored>
  MLX_OPT_FN void update(
      const Stored* const (&in)[fields + 1],
      Stored* const (&out)[fields],
      int64_t i,
      const Uniforms& uniforms) {
    float to[fields][lanes];
    compute<Format, scales>(in, i, uniforms, to);
    for (int k = 0; k < fields; ++k) {
      narrow_lanes<Format>(to[k], out[k] + i);
    }
  }

  template <typename Format, bool scales, typename Stored = typename Format::Stored>
  MLX_OPT_FN void compute(
      const Stored* const (&in)[fields + 1],
      int64_t i,
      const Uniforms& uniforms,
      float (&to)[fields][lanes]) {
    float from[fields + 1][lanes];
    for (int k = 0; k <= fields; ++k) {
      widen_lanes<Format>(in[k] + i, from[k]);
    }
    for (int lane = 0; lane < lanes; ++lane) {
      const float g = scales ? uniforms.scale * from[fields][lane] : from[fields][lane];
      put(to, lane, Rule::update(take<Element>(from, lane), g, uniforms.h, uniforms.s));
    }
  }
};

} // namespace

// The loop of a rule that takes norms too; null if it has none.
template <typename Rule>
constexpr auto squares_of() -> decltype(cpu::Kernel::run_with_squares) {
  if constexpr (by_hand && Rule::description.is_common) {
    return Driver<Rule>::run_with_squares;
  } else {
    return nullptr;
  }
}

extern const cpu::Kernel elementwise[];
const cpu::Kernel elementwise[] = {
#define MLX_OPT_KERNEL(name) \
  {prepare<name>,            \
   Driver<name>::run,        \
   copy_through<name>,       \
   squares_of<name>(),       \
   nullptr,                  \
   nullptr,                  \
   nullptr},
    MLX_OPT_FOR_EACH_RULE(MLX_OPT_KERNEL)
#undef MLX_OPT_KERNEL
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
