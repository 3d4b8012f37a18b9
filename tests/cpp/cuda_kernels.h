// Kernels of the CUDA backend, for the tests of their programs.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
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

/// The passes of a rule.
inline std::vector<Pass> passes_of(Rule rule) {
  if (mlx_opt::is_elementwise(rule)) {
    return {Pass::whole};
  }
  const bool again = mlx_opt::two_pass_info(rule).reads_gradient_again;
  return {Pass::state, again ? Pass::finish_with_gradient : Pass::finish};
}

/// The properties of a rule of two passes, given by its name; nothing for another rule.
inline mlx_opt::TwoPassInfo two_pass_info(std::string_view name) {
  for (int i = mlx_opt::elementwise_rules; i < rules; ++i) {
    if (mlx_opt::rule_infos[i].name == name) {
      return mlx_opt::two_pass_info(static_cast<Rule>(i));
    }
  }
  return {};
}

/// The storages of a pass, of those of all operands and all results.
inline UpdateKernel with_storages(
    UpdateKernel kernel, const Storages& operands, const Storages& results) {
  const int fields = results.count();
  const bool second = kernel.pass == Pass::finish || kernel.pass == Pass::finish_with_gradient;
  const mlx_opt::TwoPassInfo passes = two_pass_info(kernel.rule);
  const bool first_updates = passes.updates_state_first;
  kernel.sums = kernel.pass == Pass::state ? passes.sums : 0;
  kernel.in = {operands[0]};
  for (int k = 1; k < fields; ++k) {
    kernel.in.add(second && first_updates ? results[k] : operands[k]);
  }
  if (kernel.pass != Pass::finish) {
    kernel.in.add(operands[fields]);
  }
  const bool updates_slots = kernel.pass == Pass::whole || first_updates != second;
  kernel.out = {};
  for (int k = kernel.pass == Pass::state; k < (updates_slots ? fields : second); ++k) {
    kernel.out.add(results[k]);
  }
  return kernel;
}

/// A kernel in tables of `capacity` or of as many tensors as fit, unless it is strided.
inline UpdateKernel with_capacity(UpdateKernel kernel, int capacity) {
  const size_t record = Records(kernel.inputs(), kernel.outputs()).bytes();
  const int max_capacity = capacity_of(large_parameter, table_head, record);
  kernel.capacity = kernel.walk == Walk::strided ? 0 : std::min(capacity, max_capacity);
  return kernel;
}

/// A kernel whose operands all have one storage.
inline UpdateKernel uniform(
    Rule rule,
    Walk walk,
    Storage storage,
    int capacity,
    Scaling scaling = Scaling::none,
    Pass pass = Pass::whole) {
  const int fields = mlx_opt::info(rule).slots + 1;
  const UpdateKernel kernel{walk, scaling, 0, {}, {}, mlx_opt::info(rule).name, pass};
  return with_capacity(
      with_storages(kernel, repeated(storage, fields + 1), repeated(storage, fields)), capacity);
}

/// True if there is such a kernel: some second passes read no gradient.
inline bool is_kernel(Pass pass, Walk walk) {
  return pass != Pass::finish || walk != Walk::transposed;
}

inline std::vector<Kernel> uniform_kernels(Rule rule, Scaling scaling = Scaling::none) {
  const auto& [name, slots, hypers, scalars] = mlx_opt::info(rule);
  std::vector<Kernel> kernels = {PrepareKernel{name, hypers, 1}};
  if (mlx_opt::has_two_passes(rule)) {
    kernels.push_back(RatesKernel{name, 1022});
  }
  // Rules of two passes share the code that storages matter to.
  const bool shares = mlx_opt::has_two_passes(rule) && rule != Rule::Lamb;
  for (Pass pass : passes_of(rule)) {
    for (Storage storage : std::span(storages, shares ? 1 : std::size(storages))) {
      for (Walk walk : walks) {
        if (is_kernel(pass, walk)) {
          const int capacity = walk == Walk::flat ? 454 : 56;
          kernels.push_back(uniform(rule, walk, storage, capacity, scaling, pass));
        }
      }
    }
  }
  return kernels;
}

inline std::vector<Kernel> uniform_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < rules; ++i) {
    const auto more = uniform_kernels(static_cast<Rule>(i));
    kernels.insert(kernels.end(), more.begin(), more.end());
  }
  return kernels;
}

/// A parameter, slots and a gradient of storages of their own; the results of others.
inline std::vector<Kernel> mixed_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < 27; ++i) {
    const Storage w = storages[i % 3];
    const Storage m = storages[i / 3 % 3];
    const Storage g = storages[i / 9];
    const auto rule = static_cast<Rule>(i % rules);
    const int slots = mlx_opt::info(rule).slots;
    Storages operands = {w};
    Storages results = {m};
    for (int k = 0; k < slots; ++k) {
      operands.add(m);
      results.add(g);
    }
    operands.add(g);
    for (Pass pass : passes_of(rule)) {
      UpdateKernel kernel{};
      kernel.walk = i % 2                           ? Walk::flat
                    : i % 4 && pass != Pass::finish ? Walk::transposed
                                                    : Walk::strided;
      kernel.scaling = scalings[i / 2 % 3];
      kernel.rule = mlx_opt::info(rule).name;
      kernel.pass = pass;
      kernels.push_back(with_capacity(with_storages(kernel, operands, results), 56));
    }
  }
  return kernels;
}

/// A kernel of master weights of a rule, with float32 state.
inline UpdateKernel kernel_of_masters(
    Rule rule, Walk walk, mlx_opt::MasterWeights masters, Storage storage, Storage of_masters) {
  UpdateKernel kernel{};
  kernel.walk = walk;
  kernel.rule = mlx_opt::info(rule).name;
  kernel.masters = masters;
  kernel.in = {storage};
  for (int k = 0; k < mlx_opt::info(rule).slots; ++k) {
    kernel.in.add(Storage::float32);
  }
  kernel.in.add(of_masters);
  kernel.out = kernel.in;
  kernel.in.add(storage);
  return with_capacity(kernel, 56);
}

inline std::vector<Kernel> kernels_of_masters(Rule rule) {
  using mlx_opt::MasterWeights;
  constexpr Storage whole = Storage::float32, half = Storage::bfloat16;
  std::vector<Kernel> kernels;
  for (Walk walk : walks) {
    for (Storage storage : {Storage::float16, half}) {
      kernels.push_back(kernel_of_masters(rule, walk, MasterWeights::float32, storage, whole));
    }
    kernels.push_back(
        kernel_of_masters(rule, walk, MasterWeights::remainder, half, Storage::bits16));
  }
  return kernels;
}

/// Kernels of operands in bfloat16 that round stochastically.
inline std::vector<Kernel> kernels_with_rounding(Rule rule) {
  std::vector<Kernel> kernels;
  for (Walk walk : walks) {
    UpdateKernel kernel{};
    kernel.walk = walk;
    kernel.rule = mlx_opt::info(rule).name;
    kernel.rounds = true;
    kernel.in = repeated(Storage::bfloat16, mlx_opt::info(rule).slots + 1);
    kernel.out = kernel.in;
    kernel.in.add(Storage::bfloat16);
    kernels.push_back(with_capacity(kernel, 56));
  }
  return kernels;
}

/// A kernel of a rule all of whose slots have codes; the first is of numbers of any sign.
/// `masters`: the storage of those behind the slots, unless there are none.
inline UpdateKernel kernel_of_codes(
    Rule rule,
    Walk walk,
    Storage storage,
    mlx_opt::MasterWeights how = mlx_opt::MasterWeights::none,
    Storage masters = Storage::float32) {
  UpdateKernel kernel{};
  kernel.walk = walk;
  kernel.rule = mlx_opt::info(rule).name;
  kernel.scales = mlx_opt::info(rule).slots;
  kernel.in = {storage};
  for (int k = 0; k < kernel.scales; ++k) {
    kernel.in.add(k == 0 ? Storage::int8 : Storage::uint8);
  }
  kernel.masters = how;
  if (how != mlx_opt::MasterWeights::none) {
    kernel.in.add(masters);
  }
  kernel.out = kernel.in;
  kernel.in.add(storage);
  return with_capacity(kernel, 56);
}

inline std::vector<Kernel> kernels_of_codes(Rule rule) {
  using mlx_opt::MasterWeights;
  std::vector<Kernel> kernels;
  for (Walk walk : walks) {
    for (Storage storage : storages) {
      kernels.push_back(kernel_of_codes(rule, walk, storage));
    }
    constexpr Storage half = Storage::bfloat16;
    kernels.push_back(kernel_of_codes(rule, walk, half, MasterWeights::float32));
    kernels.push_back(kernel_of_codes(rule, walk, half, MasterWeights::remainder, Storage::bits16));
    UpdateKernel rounds = kernel_of_codes(rule, walk, half);
    rounds.rounds = rounds.clips = true;
    rounds.scaling = Scaling::if_finite;
    kernels.push_back(with_capacity(rounds, 56));
  }
  return kernels;
}

/// Kernels of a rule with averages of the weights, and the one that prepares their scalars.
inline std::vector<Kernel> kernels_with_ema(Rule rule) {
  const auto& [name, slots, hypers, scalars] = mlx_opt::info(rule);
  std::vector<Kernel> kernels = {PrepareKernel{name, hypers + 1, 1, true}};
  const auto add = [&](UpdateKernel kernel) {
    const Storage gradient = kernel.in[kernel.in.count() - 1];
    kernel.has_ema = true;
    kernel.out.add(Storage::float32);
    kernel.in = kernel.out;
    kernel.in.add(gradient);
    kernels.push_back(with_capacity(kernel, 56));
  };
  for (Walk walk : walks) {
    for (Storage storage : storages) {
      add(uniform(rule, walk, storage, 56));
    }
  }
  for (const Kernel& kernel : kernels_of_masters(rule)) {
    add(std::get<UpdateKernel>(kernel));
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

/// The kernels of a step of Adafactor. `in`: parameter, means, first moment, gradient; the results
/// have the same storages except the parameter.
inline std::vector<Kernel> adafactor_kernels(
    std::array<Storage, 4> in,
    Storage parameter,
    bool first_moment,
    int vector_width,
    int capacity) {
  const auto [w, v, m, g] = in;
  return {
      AdafactorKernel{AdafactorPass::squares, false, vector_width, capacity, {w, g}, {}},
      AdafactorKernel{AdafactorPass::means, false, vector_width, capacity, {v, v}, {v, v}},
      AdafactorKernel{AdafactorPass::update_squares, false, vector_width, capacity, {v, g}, {}},
      AdafactorKernel{AdafactorPass::rates, false, 0, capacity, {}, {}},
      AdafactorKernel{
          AdafactorPass::update,
          first_moment,
          vector_width,
          capacity,
          {w, v, m, g},
          {parameter, v, m}}};
}

inline std::vector<Kernel> adafactor_kernels() {
  std::vector<Kernel> kernels = {PrepareKernel{"Adafactor", 9, 1}};
  const auto add = [&](auto... arguments) {
    const auto more = adafactor_kernels(arguments...);
    kernels.insert(kernels.end(), more.begin(), more.end());
  };
  for (Storage s : storages) {
    for (bool first_moment : {false, true}) {
      const int vector_width = s == Storage::float32 ? 4 : 8;
      add(std::array{s, s, s, s}, s, first_moment, vector_width, 177);
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

/// An unused rule with more slots than any other.
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
