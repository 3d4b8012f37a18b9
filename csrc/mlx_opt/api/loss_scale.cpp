#include "mlx_opt/api/loss_scale.h"

#include <cmath>

#include "mlx/ops.h"
#include "mlx_opt/api/errors.h"

namespace mlx_opt {
namespace {

constexpr std::uint32_t interval = 2000; // steps in a row that are applied, before it is doubled
const float smallest = std::ldexp(1.0f, -24), largest = std::ldexp(1.0f, 24);

} // namespace

LossScale first_loss_scale(double value) {
  if (!(smallest <= value && value <= largest)) {
    reject("loss_scale: expected a number from 2^-24 to 2^24, got " + std::to_string(value));
  }
  return {mx::array(static_cast<float>(value)), mx::array(std::uint32_t{0})};
}

LossScale after_step(const LossScale& before, const mx::array& finite, mx::StreamOrDevice s) {
  const auto times = [&](float factor) { return mx::multiply(before.value, mx::array(factor), s); };
  const mx::array none(std::uint32_t{0});
  const mx::array steps = mx::add(before.steps, mx::array(std::uint32_t{1}), s);
  const mx::array grows = mx::greater_equal(steps, mx::array(interval), s);
  const mx::array doubled = mx::minimum(times(2.0f), mx::array(largest), s);
  const mx::array halved = mx::maximum(times(0.5f), mx::array(smallest), s);
  const mx::array starts = mx::logical_or(mx::logical_not(finite, s), grows, s);
  return {
      mx::where(finite, mx::where(grows, doubled, before.value, s), halved, s),
      mx::where(starts, none, steps, s)};
}

} // namespace mlx_opt
