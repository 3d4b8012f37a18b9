// What an optimizer has in the place of the parameters that it updates.
#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/api/optimizer.h"
#include "mlx_opt/api/run_step.h"

namespace mlx_opt {

NamedArrays Optimizer::averages(const NamedArrays& parameters, mx::StreamOrDevice s) const {
  const Rule rule = definition().program.rule();
  const auto& [base, part] = description_of(rule).average;
  if (!base) {
    reject(std::string(name_of(rule)) + " does not average the parameters");
  }
  NamedArrays averages = parameters;
  for (auto& [name, average] : averages) {
    const auto slots = slots_.find(name);
    if (slots == slots_.end()) {
      continue;
    }
    const auto& names = slots->second.names;
    const size_t slot = std::find(names.begin(), names.end(), base) - names.begin();
    const mx::array& z = slots->second.arrays.at(slot);
    check_operand(name, "parameter", average, z.shape());
    const Combination& combination = assignment_->combinations[assignment_->of_names.at(name)];
    const Scalar& beta = combination.definition.hypers[position_of(rule, part)];
    const auto weight = static_cast<float>(1.0 - 1.0 / std::get<double>(beta));
    const mx::array w = mx::astype(average, mx::float32, s);
    const mx::array x = mx::add(w, mx::multiply(mx::array(weight), mx::subtract(z, w, s), s), s);
    // A slot that is NaN has had no step.
    average = mx::astype(mx::where(mx::isnan(z, s), w, x, s), average.dtype(), s);
  }
  return averages;
}

} // namespace mlx_opt
