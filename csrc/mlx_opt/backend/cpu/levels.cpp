// Chooses the instruction set, once, when the first kernel is requested.
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "mlx_opt/backend/cpu/kernels/adafactor_kernel.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"

namespace mlx_opt {

#define MLX_OPT_DECLARE(level)                 \
  namespace level {                            \
  extern const cpu::Kernel elementwise[];      \
  extern const cpu::Kernel two_pass[];         \
  extern const cpu::Reductions reductions;     \
  extern const cpu::AdafactorKernel adafactor; \
  }
#if defined(__x86_64__)
MLX_OPT_DECLARE(baseline)
MLX_OPT_DECLARE(avx2)
MLX_OPT_DECLARE(avx512)
MLX_OPT_DECLARE(avx512bf16)
#else
MLX_OPT_DECLARE(neon)
#endif

namespace cpu {
namespace {

struct Level {
  std::string_view name;
  const Kernel* elementwise;
  const Kernel* two_pass;
  const Reductions& reductions;
  const AdafactorKernel& adafactor;
  bool (*usable)();
};

#if defined(__x86_64__)

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Best first.
const Level levels[] = {
    {"avx512bf16",
     avx512bf16::elementwise,
     avx512bf16::two_pass,
     avx512bf16::reductions,
     avx512bf16::adafactor,
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
    {"avx512",
     avx512::elementwise,
     avx512::two_pass,
     avx512::reductions,
     avx512::adafactor,
     has_avx512},
    {"avx2", avx2::elementwise, avx2::two_pass, avx2::reductions, avx2::adafactor, has_avx2},
    {"baseline",
     baseline::elementwise,
     baseline::two_pass,
     baseline::reductions,
     baseline::adafactor,
     [] { return true; }},
};

#else

const Level levels[] = {
    {"neon", neon::elementwise, neon::two_pass, neon::reductions, neon::adafactor, [] {
       return true;
     }}};

#endif

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

const Reductions& reductions() {
  return level().reductions;
}

const AdafactorKernel& adafactor_kernel() {
  return level().adafactor;
}

const char* vector_level() {
  return level().name.data();
}

} // namespace cpu
} // namespace mlx_opt
