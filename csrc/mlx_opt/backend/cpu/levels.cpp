// Chooses the instruction set, once, when the first kernel is requested.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "mlx_opt/backend/cpu/kernels/adafactor_kernel.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"

namespace mlx_opt {

// The build defines MLX_OPT_LEVELS: LEVEL(name) for each level that it compiles, the best first.
#define LEVEL(name)                               \
  namespace name {                                \
  extern const cpu::Kernel elementwise[];         \
  extern const cpu::Kernel two_pass[];            \
  extern const cpu::SumKernel summing[];          \
  extern const cpu::Reductions reductions;        \
  extern const cpu::AdafactorKernel adafactor;    \
  extern cpu::UpdateEma update_ema;               \
  extern const cpu::WeightSquares weight_squares; \
  }
MLX_OPT_LEVELS
#undef LEVEL

namespace cpu {
namespace {

struct Level {
  std::string_view name;
  const Kernel* elementwise;
  const Kernel* two_pass;
  const SumKernel* summing;
  const Reductions& reductions;
  const AdafactorKernel& adafactor;
  UpdateEma& update_ema;
  const WeightSquares& weight_squares;
  bool (*usable)();
};

#if defined(__x86_64__)

[[maybe_unused]] bool has_baseline() {
  return true;
}

[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] bool has_avx512bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

#else

bool has_neon() {
  return true;
}

#endif

const Level levels[] = {
#define LEVEL(name)      \
  {#name,                \
   name::elementwise,    \
   name::two_pass,       \
   name::summing,        \
   name::reductions,     \
   name::adafactor,      \
   name::update_ema,     \
   name::weight_squares, \
   has_##name},
    MLX_OPT_LEVELS
#undef LEVEL
};

const Level& chosen_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* wanted = std::getenv("MLX_OPT_VECTOR_LEVEL");
  std::string usable;
  for (const Level& level : levels) {
    if (!level.usable()) {
      continue;
    }
    if (!wanted || !*wanted || level.name == wanted) {
      return level;
    }
    usable += (usable.empty() ? "" : ", ") + std::string(level.name);
  }
  if (usable.empty()) {
    throw std::runtime_error("mlx_opt: this build has no kernels for this processor");
  }
  throw std::invalid_argument(
      "MLX_OPT_VECTOR_LEVEL: expected one of " + usable + ", got " + wanted);
}

const Level& level() {
  static const Level& level = chosen_level();
  return level;
}

} // namespace

const Kernel& kernel(Rule rule) {
  const int index = static_cast<int>(rule);
  return is_elementwise(rule) ? level().elementwise[index]
                              : level().two_pass[index - elementwise_rules];
}

const SumKernel& sum_kernel(Rule rule) {
  constexpr Rule rules[] = {
#define MLX_OPT_RULE(name) Rule::name,
      MLX_OPT_FOR_EACH_SUMMING_RULE(MLX_OPT_RULE)
#undef MLX_OPT_RULE
  };
  return level().summing[std::find(std::begin(rules), std::end(rules), rule) - std::begin(rules)];
}

const Reductions& reductions() {
  return level().reductions;
}

UpdateEma& update_ema() {
  return level().update_ema;
}

const WeightSquares& weight_squares() {
  return level().weight_squares;
}

const AdafactorKernel& adafactor_kernel() {
  return level().adafactor;
}

const char* vector_level() {
  return level().name.data();
}

} // namespace cpu
} // namespace mlx_opt
