// All rules of two passes for one instruction set; compiled as elementwise.cpp is.
#include "mlx_opt/backend/cpu/kernels/element.h"
#include "mlx_opt/backend/cpu/kernels/rule.h"

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

template <typename Rule>
struct TwoPass {
  using Hypers = typename Rule::Hypers;
  using Scalars = typename Rule::Scalars;
  using Element = typename Rule::Element;
  using Sums = typename Rule::Sums;
  using Rates = typename Rule::Rates;

  static constexpr int fields = fields_of<Rule>;
  static constexpr int sums = sizeof(Sums) / sizeof(float);
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
    if (cpu::is_transposed(tensor.in[fields])) {
      const auto visit = [&](int64_t first, int64_t count, const float* gradient) {
        sum_block(tensor, first, count, gradient, uniforms, scale, totals);
      };
      for_each_row_of_panels(tensor.in[fields], begin, end, visit);
      return;
    }
    for (; begin < end; begin += block) {
      const int64_t count = end - begin < block ? end - begin : block;
      sum_block(tensor, begin, count, nullptr, uniforms, scale, totals);
    }
  }

  // Updates the state of at most `block` elements and adds to the sums. `gradient`: the gradient's
  // values if they are already loaded, else null.
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
    float* out[fields];
    for (int k = 0; k < fields; ++k) {
      in[k] = load(tensor.in[k], begin, count, buffers[k]);
    }
    in[fields] = gradient ? gradient : load(tensor.in[fields], begin, count, buffers[fields]);
    if (scale.bound != infinity()) {
      in[fields] = clipped(scale, in[fields], count, buffers[fields]);
      scale.factor = 1.0f;
    }
    for (int k = 1; k < fields; ++k) {
      out[k] = place(tensor.out[k], begin, buffers[k]);
    }
    for (int64_t i = 0; i < count; i += lanes) {
      update_state(in, out, i, valid_lanes(count - i), uniforms, scale.factor);
    }
    // The second pass computes the direction from the stored state, so the sums use that too.
    const float* now[fields] = {in[0]};
    for (int k = 1; k < fields; ++k) {
      store(tensor.out[k], begin, count, buffers[k]);
      now[k] = load(tensor.out[k], begin, count, buffers[k]);
    }
    alignas(64) float partial[sums][lanes] = {};
    for (int64_t i = 0; i < count; i += lanes) {
      add_sums(now, i, valid_lanes(count - i), uniforms, partial);
    }
    for (int k = 0; k < sums; ++k) {
      for (int lane = 0; lane < lanes; ++lane) {
        totals[k] += partial[k][lane];
      }
    }
  }

  // Number of lanes that hold elements in a vector with `remaining` elements left.
  MLX_OPT_FN int valid_lanes(int64_t remaining) {
    return remaining < lanes ? static_cast<int>(remaining) : lanes;
  }

  // Updates the state of one vector, of which `valid` lanes hold elements.
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
      const float* const (&now)[fields],
      int64_t i,
      int valid,
      const Uniforms& uniforms,
      float (&partial)[sums][lanes]) {
    float from[fields][lanes] = {};
    float added[sums][lanes];
    for (int k = 0; k < fields; ++k) {
      copy_lanes(now[k] + i, from[k], valid);
    }
    for (int lane = 0; lane < lanes; ++lane) {
      put(added, lane, Rule::sums(take<Element>(from, lane), uniforms.h, uniforms.s));
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
      const float* rates) {
    const Uniforms uniforms(hypers, scalars);
    Rates r;
    __builtin_memcpy(&r, rates, sizeof r);
    for (; begin < end; begin += block) {
      const int64_t count = end - begin < block ? end - begin : block;
      finish_block(tensor, begin, count, uniforms, r);
    }
  }

  // Reads the state from where the first pass wrote it.
  static void finish_block(
      const Tensor& tensor,
      int64_t begin,
      int64_t count,
      const Uniforms& uniforms,
      const Rates& rates) {
    alignas(64) float buffers[fields][block];
    const float* in[fields];
    in[0] = load(tensor.in[0], begin, count, buffers[0]);
    for (int k = 1; k < fields; ++k) {
      in[k] = load(tensor.out[k], begin, count, buffers[k]);
    }
    float* out = place(tensor.out[0], begin, buffers[0]);
    for (int64_t i = 0; i < count; i += lanes) {
      const int valid = valid_lanes(count - i);
      float from[fields][lanes] = {};
      float to[lanes];
      for (int k = 0; k < fields; ++k) {
        copy_lanes(in[k] + i, from[k], valid);
      }
      for (int lane = 0; lane < lanes; ++lane) {
        to[lane] = Rule::update(take<Element>(from, lane), uniforms.h, uniforms.s, rates);
      }
      copy_lanes(to, out + i, valid);
    }
    store(tensor.out[0], begin, count, buffers[0]);
  }
};

} // namespace

extern const cpu::Kernel two_pass[];
const cpu::Kernel two_pass[] = {
#define MLX_OPT_KERNEL(name) \
  {prepare<name>,            \
   nullptr,                  \
   copy_through<name>,       \
   TwoPass<name>::sum,       \
   TwoPass<name>::rates,     \
   TwoPass<name>::finish},
    MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_KERNEL)
#undef MLX_OPT_KERNEL
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
