// What an optimizer has in the place of the parameters that it updates.
#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/api/optimizer.h"
#include "mlx_opt/api/run_step.h"
#include "mlx_opt/graph/masters.h"

namespace mlx_opt {
namespace {

bool is_narrow(mx::Dtype dtype) {
  return dtype == mx::bfloat16 || dtype == mx::float16;
}

} // namespace

std::optional<size_t> Optimizer::find(const SlotArrays& slots, std::string_view name) {
  for (size_t k = 0; k < slots.slots->size(); ++k) {
    if ((*slots.slots)[k]->name == name) {
      return k;
    }
  }
  return std::nullopt;
}

NamedArrays Optimizer::master_parameters(
    const NamedArrays& parameters, mx::StreamOrDevice s) const {
  assignment();
  NamedArrays weights = parameters;
  for (auto& [name, weight] : weights) {
    if (!is_narrow(weight.dtype())) {
      continue;
    }
    const mx::array* master = nullptr;
    if (const auto own = slots_.find(name); own != slots_.end()) {
      for (const char* slot : {"master", "remainder"}) {
        const auto k = find(own->second, slot);
        master = k ? &own->second.arrays[*k] : master;
      }
    }
    if (master) {
      check_operand(name, "parameter", weight, master->shape(), "state");
    }
    weight =
        master ? weight_of(weight, *master, mx::to_stream(s)) : mx::astype(weight, mx::float32, s);
  }
  return weights;
}

NamedArrays Optimizer::ema_parameters(const NamedArrays& parameters, mx::StreamOrDevice s) const {
  const auto& combinations = assignment().combinations;
  if (std::none_of(combinations.begin(), combinations.end(), [](const Combination& combination) {
        return combination.definition.program.has_ema();
      })) {
    reject("the optimizer has no ema, and so no averages");
  }
  NamedArrays averages = parameters;
  for (auto& [name, average] : averages) {
    const auto own = slots_.find(name);
    const auto slot = own == slots_.end() ? std::nullopt : find(own->second, ema_slot().name);
    if (slot) {
      const mx::array& ema = own->second.arrays[*slot];
      check_operand(name, "parameter", average, ema.shape(), "state");
      average = mx::where(mx::isnan(ema, s), mx::astype(average, mx::float32, s), ema, s);
    }
  }
  return averages;
}

Evaluating Optimizer::evaluating(NamedArrays& parameters, mx::StreamOrDevice s) {
  check_takes_gradients();
  NamedArrays averages = ema_parameters(parameters, s);
  for (auto& [name, average] : averages) {
    average = mx::astype(average, parameters.at(name).dtype(), s);
  }
  const auto exists = std::make_shared<const bool>(true);
  evaluating_ = exists;
  return {parameters, std::move(averages), exists};
}

Evaluating::Evaluating(
    NamedArrays& parameters, NamedArrays averages, std::shared_ptr<const bool> exists)
    : parameters_(parameters), before_(std::move(averages)), exists_(std::move(exists)) {
  parameters_.swap(before_);
}

// A parameter that has been removed meanwhile is not restored.
Evaluating::~Evaluating() {
  for (auto& [name, parameter] : before_) {
    if (const auto found = parameters_.find(name); found != parameters_.end()) {
      found->second = std::move(parameter);
    }
  }
}

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
    const mx::array& z = slots->second.arrays[find(slots->second, base).value()];
    check_operand(name, "parameter", average, z.shape());
    const Combination& combination = assignment().combinations[assignment().of_names.at(name)];
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
