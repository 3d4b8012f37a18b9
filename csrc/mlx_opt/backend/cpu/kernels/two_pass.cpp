// All rules of two passes for one instruction set; compiled as elementwise.cpp is.
#include "mlx_opt/backend/cpu/kernels/element.h"
#include "mlx_opt/backend/cpu/kernels/rule.h"
#include "mlx_opt/rules/passes.h"

// Before a loop over lanes that GCC would otherwise unroll, and then not vectorise if its body has
// a condition.
#if defined(__GNUC__) && !defined(__clang__)
#define MLX_OPT_ROLLED _Pragma("GCC unroll 1")
#else
#define MLX_OPT_ROLLED
#endif

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

// In the place of a field that the first pass does not read.
alignas(64) constexpr float unread[block] = {};

template <typename Rule>
struct TwoPass {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::Scalars;
  using Element = typename Rule::Element;
  using Sums = typename Rule::Sums;
  using Rates = typename Rule::Rates;

  static constexpr int fields = fields_of<Rule>;
  static constexpr int sums = sizeof(Sums) / sizeof(float);
  static constexpr bool updates_state_first = FirstPass<Rule>::updates_state;
  static constexpr bool reads_gradient_again = SecondPass<Rule>::reads_gradient;
  static_assert(sums <= max_sums && sizeof(Rates) <= max_sums * sizeof(float));

  // The scalars that all elements of a tensor share.
  struct Uniforms {
    Hypers h;
    Scalars s;

    Uniforms(const float* hypers, const float* scalars) {
      __builtin_memcpy(&h, hypers, sizeof h);
      __builtin_memcpy(&s, scalars, sizeof s);
    }
  };

  static void sum(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      double* totals) {
    const Uniforms uniforms(hypers, scalars);
    for_each_block(tensor, begin, end, [&](int64_t first, int64_t count, const float* gradient) {
      sum_block(tensor, first, count, gradient, uniforms, scale, totals);
    });
  }

  // Calls `visit(begin, count, gradient)` for parts of at most `block` elements. `gradient`: the
  // gradient's values if they are already loaded, else null.
  template <typename Visit>
  static void for_each_block(const Tensor& tensor, int64_t begin, int64_t end, const Visit& visit) {
    if (cpu::is_transposed(tensor.in[fields])) {
      for_each_row_of_panels(tensor.in[fields], begin, end, visit);
      return;
    }
    for (; begin < end; begin += block) {
      const int64_t count = end - begin < block ? end - begin : block;
      visit(begin, count, nullptr);
    }
  }

  // The gradient's values, which are clipped if that is to be done; they are still to be scaled if
  // `scale` has a factor then. `loaded`: the values if they are already loaded, else null.
  static const float* load_gradient(
      const Tensor& tensor,
      int64_t begin,
      int64_t count,
      const float* loaded,
      Scale& scale,
      float* buffer) {
    const float* gradient = loaded ? loaded : load(tensor.in[fields], begin, count, buffer);
    if (scale.bound != infinity()) {
      gradient = clipped(scale, gradient, count, buffer);
      scale.factor = 1.0f;
    }
    return gradient;
  }

  // Updates the state of at most `block` elements and adds to the sums.
  static void sum_block(
      const Tensor& tensor,
      int64_t begin,
      int64_t count,
      const float* gradient,
      const Uniforms& uniforms,
      Scale scale,
      double* totals) {
    alignas(64) float buffers[fields + 1][block];
    const float* in[fields + 1];
    for (int k = 0; k < fields; ++k) {
      const bool is_read = FirstPassReads<Rule>::fields >> k & 1;
      in[k] = is_read ? load(tensor.in[k], begin, count, buffers[k]) : unread;
    }
    in[fields] = load_gradient(tensor, begin, count, gradient, scale, buffers[fields]);
    if constexpr (updates_state_first) {
      float* out[fields];
      for (int k = 1; k < fields; ++k) {
        out[k] = place(tensor.out[k], begin, buffers[k]);
      }
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes) {
        update_state(in, out, i, lanes, uniforms, scale.factor);
      }
      if (i < count) {
        update_state(in, out, i, static_cast<int>(count - i), uniforms, scale.factor);
      }
      // The second pass computes the direction from the stored state, so the sums use that too.
      for (int k = 1; k < fields; ++k) {
        store(tensor.out[k], begin, count, buffers[k]);
        in[k] = load(tensor.out[k], begin, count, buffers[k]);
      }
    }
    alignas(64) float partial[sums][lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      add_sums(in, i, lanes, uniforms, scale.factor, partial);
    }
    if (i < count) {
      add_sums(in, i, static_cast<int>(count - i), uniforms, scale.factor, partial);
    }
    for (int k = 0; k < sums; ++k) {
      for (int lane = 0; lane < lanes; ++lane) {
        totals[k] += partial[k][lane];
      }
    }
  }

  // Updates the state of one vector, of which `valid` lanes hold elements. Whole vectors have loops
  // of their own, where `valid` is a constant, because the compiler vectorises nothing else.
  MLX_OPT_FN void update_state(
      const float* const (&in)[fields + 1],
      float* const (&out)[fields],
      int64_t i,
      int valid,
      const Uniforms& uniforms,
      float scale) {
    float from[fields + 1][lanes] = {};
    float to[fields][lanes];
    for (int k = 0; k <= fields; ++k) {
      copy_lanes(in[k] + i, from[k], valid);
    }
    for (int lane = 0; lane < lanes; ++lane) {
      const float g = scale * from[fields][lane];
      put(to, lane, Rule::update_state(take<Element>(from, lane), g, uniforms.h, uniforms.s));
    }
    for (int k = 1; k < fields; ++k) {
      copy_lanes(to[k], out[k] + i, valid);
    }
  }

  MLX_OPT_FN void add_sums(
      const float* const (&now)[fields + 1],
      int64_t i,
      int valid,
      const Uniforms& uniforms,
      float scale,
      float (&partial)[sums][lanes]) {
    float from[fields + 1][lanes] = {};
    float added[sums][lanes];
    for (int k = 0; k <= fields; ++k) {
      copy_lanes(now[k] + i, from[k], valid);
    }
    MLX_OPT_ROLLED
    for (int lane = 0; lane < lanes; ++lane) {
      const float g = scale * from[fields][lane];
      put(added, lane, sums_of<Rule>(take<Element>(from, lane), g, uniforms.h, uniforms.s));
    }
    for (int k = 0; k < sums; ++k) {
      for (int lane = 0; lane < lanes; ++lane) {
        partial[k][lane] += lane < valid ? added[k][lane] : 0.0f;
      }
    }
  }

  MLX_OPT_FN void copy_lanes(const float* from, float* to, int valid) {
    if (valid == lanes) {
      __builtin_memcpy(to, from, lanes * sizeof(float));
    } else {
      __builtin_memcpy(to, from, valid * sizeof(float));
    }
  }

  static void rates(const double* totals, const float* hypers, const float* scalars, float* out) {
    const Uniforms uniforms(hypers, scalars);
    float narrow[sums];
    for (int k = 0; k < sums; ++k) {
      narrow[k] = static_cast<float>(totals[k]);
    }
    Sums s;
    __builtin_memcpy(&s, narrow, sizeof s);
    const Rates r = Rule::rates(s, uniforms.h, uniforms.s);
    __builtin_memcpy(out, &r, sizeof r);
  }

  static void finish(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      const float* rates) {
    const Uniforms uniforms(hypers, scalars);
    Rates r;
    __builtin_memcpy(&r, rates, sizeof r);
    const auto finish = [&](int64_t first, int64_t count, const float* gradient) {
      finish_block(tensor, first, count, gradient, uniforms, scale, r);
    };
    if constexpr (reads_gradient_again) {
      for_each_block(tensor, begin, end, finish);
    } else {
      for (; begin < end; begin += block) {
        finish(begin, end - begin < block ? end - begin : block, nullptr);
      }
    }
  }

  // Reads the state from where the first pass wrote it, if it did.
  static void finish_block(
      const Tensor& tensor,
      int64_t begin,
      int64_t count,
      const float* gradient,
      const Uniforms& uniforms,
      Scale scale,
      const Rates& rates) {
    constexpr int inputs = reads_gradient_again ? fields + 1 : fields;
    constexpr int results = updates_state_first ? 1 : fields;
    alignas(64) float buffers[inputs][block];
    const float* in[inputs];
    float* out[results];
    in[0] = load(tensor.in[0], begin, count, buffers[0]);
    for (int k = 1; k < fields; ++k) {
      const Operand& state = updates_state_first ? tensor.out[k] : tensor.in[k];
      in[k] = load(state, begin, count, buffers[k]);
    }
    if constexpr (reads_gradient_again) {
      in[fields] = load_gradient(tensor, begin, count, gradient, scale, buffers[fields]);
    }
    for (int k = 0; k < results; ++k) {
      out[k] = place(tensor.out[k], begin, buffers[k]);
    }
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      update(in, out, i, lanes, uniforms, scale.factor, rates);
    }
    if (i < count) {
      update(in, out, i, static_cast<int>(count - i), uniforms, scale.factor, rates);
    }
    for (int k = 0; k < results; ++k) {
      store(tensor.out[k], begin, count, buffers[k]);
    }
  }

  template <int inputs, int results>
  MLX_OPT_FN void update(
      const float* const (&in)[inputs],
      float* const (&out)[results],
      int64_t i,
      int valid,
      const Uniforms& uniforms,
      float scale,
      const Rates& rates) {
    float from[inputs][lanes] = {};
    float to[results][lanes];
    for (int k = 0; k < inputs; ++k) {
      copy_lanes(in[k] + i, from[k], valid);
    }
    for (int lane = 0; lane < lanes; ++lane) {
      const auto e = take<Element>(from, lane);
      if constexpr (!reads_gradient_again) {
        to[0][lane] = Rule::update(e, uniforms.h, uniforms.s, rates);
      } else if constexpr (updates_state_first) {
        to[0][lane] = Rule::update(e, scale * from[fields][lane], uniforms.h, uniforms.s, rates);
      } else {
        put(to, lane, Rule::update(e, scale * from[fields][lane], uniforms.h, uniforms.s, rates));
      }
    }
    for (int k = 0; k < results; ++k) {
      copy_lanes(to[k], out[k] + i, valid);
    }
  }
};

// The sums of a rule over all tensors, as the first pass of a rule of two passes.
template <typename Rule>
struct SumPass {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::template Weights<float>;
  using Element = typename Rule::Element;
  using Sums = typename Rule::template Sums<float>;
  using Rates = Sums;
  enum : unsigned { first_pass_reads = Rule::sums_read };

  MLX_OPT_FN Sums sums(Element e, float g, Hypers, Scalars s) {
    return Rule::sums(e, g, s);
  }
};

template <typename Rule>
void prepare_sums(const float* hypers, float lr, float step, float* scalars) {
  typename Rule::Hypers h;
  __builtin_memcpy(&h, hypers, sizeof h);
  const typename Rule::template Weights<float> weights = Rule::prepare_sums(h, lr, step);
  static_assert(sizeof weights <= cpu::max_sum_scalars * sizeof(float));
  __builtin_memcpy(scalars, &weights, sizeof weights);
}

} // namespace

extern const cpu::SumKernel summing[];
const cpu::SumKernel summing[] = {
#define MLX_OPT_KERNEL(name) {prepare_sums<name>, TwoPass<SumPass<name>>::sum},
    MLX_OPT_FOR_EACH_SUMMING_RULE(MLX_OPT_KERNEL)
#undef MLX_OPT_KERNEL
};

extern const cpu::Kernel two_pass[];
const cpu::Kernel two_pass[] = {
#define MLX_OPT_KERNEL(name) \
  {prepare<name>,            \
   nullptr,                  \
   copy_through<name>,       \
   nullptr,                  \
   TwoPass<name>::sum,       \
   TwoPass<name>::rates,     \
   TwoPass<name>::finish},
    MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_KERNEL)
#undef MLX_OPT_KERNEL
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
