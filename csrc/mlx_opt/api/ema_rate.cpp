#include "mlx_opt/api/ema_rate.h"

#include <stdexcept>
#include <string>

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

void check(
    std::string_view optimizer, const char* name, double value, bool fits, const char* expected) {
  if (!fits) {
    throw std::invalid_argument(
        "mlx_opt " + std::string(optimizer) + ": " + name + ": expected " + expected + ", got " +
        std::to_string(value));
  }
}

// The least rate of a step, which the warm-up gives.
mx::array least_rate(const Ema& ema, const mx::array& step, mx::StreamOrDevice s) {
  const mx::array zero(0.0f), one(1.0f);
  const auto first = static_cast<float>(ema.update_after + 1); // the step that averages nothing
  const mx::array averaged = mx::subtract(mx::astype(step, mx::float32, s), mx::array(first), s);
  const mx::array is_new = mx::less_equal(averaged, zero, s);
  switch (ema.warmup) {
    case EmaWarmup::none:
      return mx::astype(is_new, mx::float32, s);
    case EmaWarmup::ratio:
      return mx::where(
          is_new, one, mx::divide(mx::array(9.0f), mx::add(mx::array(10.0f), averaged, s), s), s);
    case EmaWarmup::power: {
      const mx::array exponent(static_cast<float>(-ema.power));
      return mx::power(mx::add(one, mx::maximum(averaged, zero, s), s), exponent, s);
    }
  }
  return zero;
}

} // namespace

void check(const Ema& ema, std::string_view optimizer) {
  const bool is_decay = 0.0 <= ema.decay && ema.decay < 1.0;
  check(optimizer, "ema.decay", ema.decay, is_decay, "a number in [0, 1)");
  const bool is_power = 0.0 < ema.power && ema.power <= 1.0;
  check(optimizer, "ema.power", ema.power, is_power, "a number in (0, 1]");
}

Scalar ema_rate(const Ema& ema, const mx::array& step, mx::StreamOrDevice s) {
  const double rate = 1.0 - ema.decay;
  if (ema.warmup == EmaWarmup::none && ema.update_after == 0) {
    return rate;
  }
  return mx::maximum(least_rate(ema, step, s), mx::array(static_cast<float>(rate)), s);
}

} // namespace mlx_opt
