// Kernels of the CUDA backend, for the tests of their programs.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "mlx_opt/backend/cuda/kernel.h"
#include "mlx_opt/backend/cuda/records.h"
#include "mlx_opt/rules/registry.h"

namespace cuda_kernels {

using namespace mlx_opt::cuda;
using mlx_opt::Rule;
using mlx_opt::Scaling;
using mlx_opt::Storage;

constexpr Storage storages[] = {Storage::float32, Storage::float16, Storage::bfloat16};
constexpr Walk walks[] = {Walk::flat, Walk::transposed, Walk::strided};
constexpr Scaling scalings[] = {Scaling::none, Scaling::always, Scaling::if_finite};
constexpr int rules = std::size(mlx_opt::rule_infos);

inline Storages repeated(Storage storage, int count) {
  Storages all;
  for (int k = 0; k < count; ++k) {
    all.add(storage);
  }
  return all;
}

/// Of one storage; in tables of `capacity` or as many tensors as fit, unless it is strided.
inline UpdateKernel uniform(
    Rule rule, Walk walk, Storage storage, int capacity, Scaling scaling = Scaling::none) {
  const auto& [name, moments, hypers, scalars] = mlx_opt::info(rule);
  const size_t record = Records(moments + 2, moments + 1).bytes();
  const int most = capacity_of(large_parameter, table_head, record);
  return {
      walk,
      scaling,
      walk == Walk::strided ? 0 : std::min(capacity, most),
      repeated(storage, moments + 2),
      repeated(storage, moments + 1),
      name};
}

inline std::vector<Kernel> uniform_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    kernels.push_back(PrepareKernel{mlx_opt::info(rule).name, mlx_opt::info(rule).hypers, 1});
    for (Storage storage : storages) {
      kernels.push_back(uniform(rule, Walk::flat, storage, 454));
      kernels.push_back(uniform(rule, Walk::transposed, storage, 56));
      kernels.push_back(uniform(rule, Walk::strided, storage, 0));
    }
  }
  return kernels;
}

/// A parameter, moments and a gradient of storages of their own; the results of others.
inline std::vector<Kernel> mixed_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < 27; ++i) {
    const Storage w = storages[i % 3];
    const Storage m = storages[i / 3 % 3];
    const Storage g = storages[i / 9];
    const Walk walk = i % 2 ? Walk::flat : i % 4 ? Walk::transposed : Walk::strided;
    auto kernel = uniform(static_cast<Rule>(i % rules), walk, m, 56, scalings[i / 2 % 3]);
    const int moments = kernel.out.count() - 1;
    kernel.in = {w};
    kernel.out = {m};
    for (int k = 0; k < moments; ++k) {
      kernel.in.add(m);
      kernel.out.add(g);
    }
    kernel.in.add(g);
    kernels.push_back(kernel);
  }
  return kernels;
}

inline std::vector<Kernel> norm_kernels() {
  std::vector<Kernel> kernels = {NormKernel{}, ClipKernel{}};
  for (Storage storage : storages) {
    kernels.push_back(SquaresKernel{storage, 1023});
    kernels.push_back(SquaresKernel{storage, 0});
  }
  return kernels;
}

/// Those of a step of Adafactor. `in`: parameter, means, first moment, gradient; the results are
/// the same but for the parameter.
inline std::vector<Kernel> adafactor_kernels(
    std::array<Storage, 4> in, Storage parameter, bool first_moment, int lanes, int capacity) {
  const auto [w, v, m, g] = in;
  return {
      FactorKernel{FactorPass::squares, false, lanes, capacity, {w, g}, {}},
      FactorKernel{FactorPass::means, false, lanes, capacity, {v, v}, {v, v}},
      FactorKernel{FactorPass::update_squares, false, lanes, capacity, {v, g}, {}},
      FactorKernel{FactorPass::rates, false, 0, capacity, {}, {}},
      FactorKernel{
          FactorPass::update, first_moment, lanes, capacity, {w, v, m, g}, {parameter, v, m}}};
}

inline std::vector<Kernel> adafactor_kernels() {
  std::vector<Kernel> kernels = {PrepareKernel{"Adafactor", 9, 1}};
  const auto add = [&](auto... arguments) {
    const auto more = adafactor_kernels(arguments...);
    kernels.insert(kernels.end(), more.begin(), more.end());
  };
  for (Storage s : storages) {
    for (bool first_moment : {false, true}) {
      const int lanes = s == Storage::float32 ? 4 : 8;
      add(std::array{s, s, s, s}, s, first_moment, lanes, 177);
      add(std::array{s, s, s, s}, s, first_moment, 1, 0);
      add(std::array{Storage::float32, Storage::bfloat16, s, Storage::float16},
          s,
          first_moment,
          4,
          22);
    }
  }
  return kernels;
}

/// A rule that nobody uses, of more states than any other.
inline constexpr const char* six_states_header = R"(
MLX_OPT_RULES_BEGIN

struct SixStates {
  struct Hypers {
    Hyper beta;
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float w, a, b, c, d, e, f;
  };

  MLX_OPT_FN Scalars prepare(Hypers, float lr, float) {
    return {lr};
  }

  MLX_OPT_FN Element update(Element x, float g, Hypers h, Scalars s) {
    float a = x.a + g;
    float b = x.b + 2 * g;
    float c = x.c + 3 * g;
    float d = x.d + 4 * g;
    float e = x.e + 5 * g;
    float f = fma(h.beta.value, x.f, 6 * g);
    return {x.w - s.lr * g, a, b, c, d, e, f};
  }
};

MLX_OPT_RULES_END
)";

inline UpdateKernel six_states(Walk walk) {
  return {
      walk,
      Scaling::none,
      walk == Walk::strided ? 0 : 10,
      repeated(Storage::float32, 8),
      repeated(Storage::float32, 7),
      "SixStates"};
}

} // namespace cuda_kernels
