// Writes the program of every kernel to test into the folder given, a file each.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include "mlx_opt/backend/metal/adafactor_source.h"
#include "mlx_opt/backend/metal/kernel_source.h"
#include "mlx_opt/backend/metal/norm_source.h"
#include "mlx_opt/backend/metal/two_pass_source.h"
#include "mlx_opt/rules/registry.h"

using namespace mlx_opt::metal;
using mlx_opt::MasterWeights;
using mlx_opt::Scaling;
using mlx_opt::Storage;

namespace {

constexpr Storage storages[] = {Storage::float32, Storage::float16, Storage::bfloat16};
constexpr Walk walks[] = {Walk::flat, Walk::transposed, Walk::strided, Walk::strided_long};

constexpr auto two_pass_rules = std::span(mlx_opt::rule_infos).subspan(mlx_opt::elementwise_rules);

const mlx_opt::TwoPassInfo& passes_of(const mlx_opt::RuleInfo& rule) {
  return mlx_opt::two_pass_info(static_cast<mlx_opt::Rule>(&rule - mlx_opt::rule_infos));
}

// True if a rule before this one has passes of the same kinds.
bool has_usual_passes(const mlx_opt::RuleInfo& rule) {
  const auto& own = passes_of(rule);
  return std::any_of(two_pass_rules.data(), &rule, [&](const mlx_opt::RuleInfo& other) {
    const auto& passes = passes_of(other);
    return passes.updates_state_first == own.updates_state_first &&
           passes.reads_gradient_again == own.reads_gradient_again;
  });
}

// A tensor whose results overwrite its operands.
Operands in_place(int fields, Storage storage) {
  Operands operands;
  operands.in.assign(fields + 1, storage);
  operands.out.assign(fields, storage);
  for (int k = 0; k < fields; ++k) {
    operands.written.push_back(static_cast<int8_t>(k));
  }
  return operands;
}

Operands all_apart(Operands operands) {
  std::fill(operands.written.begin(), operands.written.end(), apart);
  return operands;
}

// A parameter, slots and a gradient with different storages. The parameter's result has the
// gradient's storage, and overwrites it if it may; the slots are overwritten.
Operands mixed(int fields, int mix) {
  Operands operands = in_place(fields, storages[mix / 3 % 3]);
  operands.in[0] = storages[mix % 3];
  operands.in[fields] = operands.out[0] = storages[mix / 9];
  operands.written[0] = mix % 2 ? apart : static_cast<int8_t>(fields);
  return operands;
}

// Half-precision operands whose gradient promotes the results to float.
Operands promoted(int fields) {
  Operands operands = all_apart(in_place(fields, Storage::bfloat16));
  operands.in[fields] = Storage::float32;
  operands.out.assign(fields, Storage::float32);
  return operands;
}

void push_updates(std::vector<UpdateKernel>& kernels, const mlx_opt::RuleInfo& rule, int number) {
  const int fields = rule.slots + 1;
  const auto push = [&](Walk walk, const Operands& operands, Scaling scaling = Scaling::none) {
    kernels.push_back({rule.name, walk, scaling, 1, operands});
  };
  const auto pack = [&](const Operands& operands) {
    kernels.push_back({rule.name, Walk::flat, Scaling::none, max_per_pack(operands), operands});
  };
  for (Storage storage : storages) {
    const Operands operands = in_place(fields, storage);
    for (Walk walk : walks) {
      push(walk, operands);
    }
    pack(operands);
  }
  const Operands own = in_place(fields, storages[number % 3]);
  for (Walk walk : walks) {
    push(walk, all_apart(own));
  }
  pack(all_apart(own));
  for (Scaling scaling : {Scaling::always, Scaling::if_finite}) {
    push(Walk::flat, own, scaling);
    push(Walk::transposed, all_apart(own), scaling);
    push(Walk::strided, own, scaling);
  }
}

void push_mix(std::vector<UpdateKernel>& kernels, const mlx_opt::RuleInfo& rule, int mix) {
  const Operands operands = mixed(rule.slots + 1, mix);
  for (Walk walk : walks) {
    // A gradient whose layout differs from the results' is not overwritten.
    const bool gradient_lies_alike = walk == Walk::flat;
    kernels.push_back(
        {rule.name, walk, Scaling::none, 1, gradient_lies_alike ? operands : all_apart(operands)});
  }
  kernels.push_back({rule.name, Walk::flat, Scaling::none, max_per_pack(operands), operands});
  kernels.push_back({rule.name, Walk::flat, Scaling::if_finite, 1, operands});
}

// The stages around a rule: parameters with float32 state, and master weights or averages or both.
void push_stages(
    std::vector<UpdateKernel>& kernels,
    const Operands& operands,
    std::string_view rule,
    MasterWeights masters,
    bool has_ema) {
  const auto push = [&](Walk walk, const Operands& operands, Scaling scaling, int capacity = 1) {
    kernels.push_back({rule, walk, scaling, capacity, operands, masters, false, has_ema});
  };
  for (Walk walk : walks) {
    push(walk, operands, Scaling::none);
  }
  push(Walk::flat, operands, Scaling::none, max_per_pack(operands));
  push(Walk::flat, all_apart(operands), Scaling::none);
  push(Walk::flat, operands, Scaling::if_finite);
}

// Stochastic rounding of a parameter in bfloat16, whose last slot is in float32 if it has any.
void push_rounding(std::vector<UpdateKernel>& kernels, const mlx_opt::RuleInfo& rule) {
  const int fields = rule.slots + 1;
  Operands operands = in_place(fields, Storage::bfloat16);
  if (rule.slots > 0) {
    operands.in[fields - 1] = operands.out[fields - 1] = Storage::float32;
  }
  const auto push = [&](Walk walk, const Operands& own, Scaling scaling, int capacity = 1) {
    kernels.push_back({rule.name, walk, scaling, capacity, own, MasterWeights::none, true});
  };
  for (Walk walk : walks) {
    push(walk, operands, Scaling::none);
  }
  push(Walk::flat, operands, Scaling::none, max_per_pack(operands));
  push(Walk::flat, all_apart(operands), Scaling::none);
  push(Walk::flat, operands, Scaling::if_finite);
}

// Kernels of a parameter and a gradient of one storage. `of_masters`: the storage of a master.
void push_masters(
    std::vector<UpdateKernel>& kernels,
    const mlx_opt::RuleInfo& rule,
    MasterWeights masters,
    Storage storage,
    Storage of_masters) {
  for (const bool has_ema : {false, true}) {
    const bool has_master = masters != MasterWeights::none;
    const int fields = rule.slots + 1 + has_master + has_ema;
    Operands operands = in_place(fields, Storage::float32);
    operands.in[0] = operands.in[fields] = operands.out[0] = storage;
    if (has_master) {
      operands.in[rule.slots + 1] = operands.out[rule.slots + 1] = of_masters;
    }
    if (has_master || has_ema) {
      push_stages(kernels, operands, rule.name, masters, has_ema);
    }
  }
}

// Slots of codes, of which all but the first are of numbers that are not negative. `masters`: of a
// parameter in bfloat16; else it is in float32.
void push_codes(
    std::vector<UpdateKernel>& kernels,
    const mlx_opt::RuleInfo& rule,
    MasterWeights masters,
    bool rounds = false) {
  const bool has_master = masters != MasterWeights::none;
  const int fields = rule.slots + 1 + has_master;
  Operands operands = in_place(fields + rule.slots, Storage::float32);
  for (int k = 1; k <= rule.slots; ++k) {
    operands.in[k] = operands.out[k] = k == 1 ? Storage::int8 : Storage::uint8;
  }
  if (has_master || rounds) {
    operands.in[0] = operands.out[0] = operands.in.back() = Storage::bfloat16;
  }
  if (has_master) {
    operands.in[fields - 1] = operands.out[fields - 1] = Storage::bits16;
  }
  const auto push = [&](Walk walk, const Operands& own, Scaling scaling, int capacity = 1) {
    kernels.push_back(
        {rule.name, walk, scaling, capacity, own, masters, rounds, false, rule.slots});
  };
  push(Walk::flat, operands, Scaling::none);
  push(Walk::strided, operands, Scaling::none);
  push(Walk::strided_long, operands, Scaling::none);
  push(Walk::flat, operands, Scaling::none, max_per_pack(operands));
  push(Walk::flat, all_apart(operands), Scaling::none);
  push(Walk::flat, operands, Scaling::if_finite);
  push(Walk::flat, all_apart(operands), Scaling::if_finite);
}

std::vector<UpdateKernel> update_kernels() {
  constexpr int rules = mlx_opt::elementwise_rules;
  std::vector<UpdateKernel> kernels;
  for (int i = 0; i < rules; ++i) {
    push_updates(kernels, mlx_opt::rule_infos[i], i);
  }
  for (int mix = 0; mix < 27; ++mix) {
    push_mix(kernels, mlx_opt::rule_infos[mix % rules], mix);
  }
  for (mlx_opt::Rule rule : {mlx_opt::Rule::AdamW, mlx_opt::Rule::SGD}) {
    constexpr Storage whole = Storage::float32, half = Storage::bfloat16;
    const auto& info = mlx_opt::info(rule);
    for (Storage storage : {Storage::float16, half}) {
      push_masters(kernels, info, MasterWeights::float32, storage, whole);
    }
    push_masters(kernels, info, MasterWeights::remainder, half, Storage::bits16);
    push_rounding(kernels, info);
    for (Storage storage : storages) {
      push_masters(kernels, info, MasterWeights::none, storage, whole);
    }
  }
  for (mlx_opt::Rule rule : {mlx_opt::Rule::AdamW, mlx_opt::Rule::Lion}) {
    push_codes(kernels, mlx_opt::info(rule), MasterWeights::none);
  }
  push_codes(kernels, mlx_opt::info(mlx_opt::Rule::Lion), MasterWeights::remainder);
  push_codes(kernels, mlx_opt::info(mlx_opt::Rule::Lion), MasterWeights::none, true);
  return kernels;
}

// The kernels of updates whose operands passes have.
std::vector<UpdateKernel> steps_of_passes(const mlx_opt::RuleInfo& rule) {
  std::vector<UpdateKernel> steps;
  const int fields = rule.slots + 1;
  if (has_usual_passes(rule)) {
    const Operands floats = in_place(fields, Storage::float32);
    steps.push_back({rule.name, Walk::flat, Scaling::none, 1, floats});
    steps.push_back({rule.name, Walk::transposed, Scaling::if_finite, 1, floats});
    steps.push_back({rule.name, Walk::strided, Scaling::none, 1, promoted(fields)});
    return steps;
  }
  push_updates(steps, rule, 0);
  const Operands halves = all_apart(in_place(fields, Storage::bfloat16));
  steps.push_back({rule.name, Walk::strided_long, Scaling::none, 1, halves});
  for (Walk walk : {Walk::flat, Walk::strided}) {
    steps.push_back({rule.name, walk, Scaling::if_finite, 1, promoted(fields)});
    steps.push_back({rule.name, walk, Scaling::none, 1, promoted(fields)});
  }
  for (int mix = 0; mix < 27; mix += 5) {
    push_mix(steps, rule, mix);
  }
  return steps;
}

// Kernels of rules of two passes, over the operands of updates.
std::vector<PassKernel> pass_kernels() {
  std::vector<PassKernel> kernels;
  for (const auto& rule : two_pass_rules) {
    const auto& passes = passes_of(rule);
    for (UpdateKernel step : steps_of_passes(rule)) {
      step.capacity = std::min(step.capacity, max_per_pass(passes, step.operands));
      // A parameter that is overwritten is contiguous.
      const bool strided = step.walk == Walk::strided || step.walk == Walk::strided_long;
      const bool flat = !strided || step.operands.written[0] == 0;
      const Walk second_walk = flat && !passes.reads_gradient_again ? Walk::flat : step.walk;
      kernels.push_back(pass_of(passes, Pass::state, step, step.walk));
      kernels.push_back(pass_of(passes, second_pass_of(passes), step, second_walk));
    }
  }
  return kernels;
}

std::vector<RatesKernel> rates_kernels() {
  std::vector<RatesKernel> kernels;
  for (const auto& rule : two_pass_rules) {
    kernels.push_back({rule.name});
  }
  return kernels;
}

std::vector<PrepareKernel> prepare_kernels() {
  std::vector<PrepareKernel> kernels;
  for (int capacity : {4, 8, scalar_slots}) {
    for (const auto& rule : mlx_opt::rule_infos) {
      kernels.push_back({rule.name, capacity});
    }
    for (mlx_opt::Rule rule : {mlx_opt::Rule::AdamW, mlx_opt::Rule::SGD}) {
      kernels.push_back({mlx_opt::info(rule).name, capacity, true});
    }
    kernels.push_back({"Adafactor", capacity});
  }
  return kernels;
}

// Adafactor's passes over a parameter, its means, its first moment and its gradient with different
// storages. Each result has its operand's storage.
void push_passes(
    std::vector<AdafactorKernel>& kernels, Storage w, Storage v, Storage m, Storage g) {
  kernels.push_back({AdafactorKind::rates, {}, {}});
  for (bool strided : {false, true}) {
    kernels.push_back({AdafactorKind::squares, {g, w}, {}, strided});
    kernels.push_back({AdafactorKind::means, {v, m}, {w, v}, strided});
    kernels.push_back({AdafactorKind::update_squares, {g}, {}, strided});
    kernels.push_back({AdafactorKind::update, {g, w}, {w}, strided});
    kernels.push_back({AdafactorKind::update, {g, w, m}, {w, m}, strided});
    kernels.push_back({AdafactorKind::element_squares, {g, w, v}, {}, strided});
    for (AdafactorKind kind : {AdafactorKind::element_update, AdafactorKind::element_step}) {
      kernels.push_back({kind, {g, w, v}, {w, v}, strided});
      kernels.push_back({kind, {g, w, v, m}, {w, v, m}, strided});
    }
  }
  kernels.push_back({AdafactorKind::transposed_update, {g, w}, {w}});
  kernels.push_back({AdafactorKind::transposed_update, {g, w, m}, {w, m}});
}

std::vector<AdafactorKernel> adafactor_kernels() {
  std::vector<AdafactorKernel> kernels;
  for (Storage storage : storages) {
    push_passes(kernels, storage, storage, storage, storage);
  }
  for (int mix = 0; mix < 3; ++mix) {
    const auto at = [&](int k) { return storages[(mix + k) % 3]; };
    push_passes(kernels, at(0), at(1), at(2), at(1));
  }
  return kernels;
}

std::vector<NormKernel> norm_kernels() {
  std::vector<NormKernel> kernels{{NormKind::norm}, {NormKind::clip}};
  for (Storage storage : storages) {
    kernels.push_back({NormKind::squares, storage});
    kernels.push_back({NormKind::squares, storage, max_squares_per_pack});
    kernels.push_back({NormKind::strided_squares, storage});
    kernels.push_back({NormKind::strided_squares_long, storage});
  }
  return kernels;
}

bool write(const std::filesystem::path& folder, const std::string& name, const std::string& text) {
  std::ofstream file(folder / (name + ".metal"));
  file << text;
  return bool(file.flush());
}

// Returns true if all could be written.
template <typename Kernels>
bool write(const Kernels& kernels, const std::filesystem::path& folder) {
  return std::all_of(kernels.begin(), kernels.end(), [&](const auto& kernel) {
    return write(folder, name(kernel), source(kernel));
  });
}

// A rule of as many arrays as a step may come to: a parameter, six states with a second array
// each, a second copy of the parameter, an average and an accumulator; and of many hyperparameters.
constexpr int wide_fields = 16;
constexpr const char* wide_rule = R"(
namespace mlx_opt {
namespace MLX_OPT_LEVEL {

struct Wide {
  struct Hypers {
    Hyper each[20];
  };
  struct Scalars {
    float lr;
  };
  struct Element {
    float each[16];
  };

  MLX_OPT_FN Scalars prepare(Hypers h, float lr, float) {
    return {lr * h.each[19].value};
  }

  MLX_OPT_FN Element update(Element e, float g, Hypers h, Scalars s) {
    for (int k = 1; k < 16; ++k) {
      e.each[k] = fma(h.each[k].value, e.each[k], h.each[k].one_minus * g);
      e.each[0] = fma(-s.lr, e.each[k], e.each[0]);
    }
    return e;
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
)";

bool write_wide(const std::filesystem::path& folder) {
  Operands operands = in_place(wide_fields, Storage::float32);
  operands.in[0] = operands.out[0] = Storage::bfloat16;
  const UpdateKernel update{"Wide", Walk::flat, Scaling::none, max_per_pack(operands), operands};
  bool written = write(folder, name(update), source(update, wide_rule));
  for (int capacity : {4, scalar_slots}) {
    const PrepareKernel prepare{"Wide", capacity};
    written = written && write(folder, name(prepare), source(prepare, wide_rule));
  }
  return written;
}

} // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: " << arguments[0] << " FOLDER\n";
    return 2;
  }
  const std::filesystem::path folder = arguments[1];
  std::filesystem::create_directories(folder);
  if (!write(update_kernels(), folder) || !write(prepare_kernels(), folder) ||
      !write(pass_kernels(), folder) || !write(rates_kernels(), folder) ||
      !write(adafactor_kernels(), folder) || !write(norm_kernels(), folder) ||
      !write_wide(folder)) {
    std::cerr << "cannot write to " << folder << "\n";
    return 1;
  }
}
