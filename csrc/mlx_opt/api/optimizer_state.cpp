// The state of an optimizer and its checkpoints.
#include <stdexcept>

#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx_opt/api/accumulation.h"
#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/api/loss_scale.h"
#include "mlx_opt/api/optimizer.h"
#include "mlx_opt/api/run_step.h"
#include "mlx_opt/step/kept.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

// What mlx.optimizers does not have stands under one reserved name, as in Python.
constexpr const char* grad_norm_key = "mlx_opt.grad_norm";
constexpr const char* telemetry_prefix = "mlx_opt.telemetry.";
constexpr const char* skipped_key = "mlx_opt.skipped";
constexpr const char* loss_scale_key = "mlx_opt.loss_scale";
constexpr const char* loss_scale_steps_key = "mlx_opt.steps_at_loss_scale";

std::string key_of(const std::string& parameter, std::string_view name) {
  return parameter + "." + std::string(name);
}

// Takes an array out of a state.
mx::array take(NamedArrays& state, const std::string& key) {
  auto entry = state.extract(key);
  if (entry.empty()) {
    reject("the state has no \"" + key + "\"");
  }
  return std::move(entry.mapped());
}

mx::array take_scalar(NamedArrays& state, const std::string& key, bool whole) {
  const mx::array x = take(state, key);
  const bool fits = whole ? mx::issubdtype(x.dtype(), mx::integer)
                          : mx::issubdtype(x.dtype(), mx::number) && x.dtype() != mx::complex64;
  if (x.size() != 1 || !fits) {
    reject(
        "the state's \"" + key + "\" must be one " + (whole ? "integer" : "real number") +
        ", got " + dtype_text(x.dtype()) + " of shape " + shape_text(x.shape()));
  }
  return mx::astype(
      mx::reshape(x, {}, mx::Device::cpu), whole ? mx::uint64 : mx::float32, mx::Device::cpu);
}

std::optional<mx::array> take_scalar_if_any(
    NamedArrays& state, const std::string& key, bool whole) {
  return state.contains(key) ? std::optional(take_scalar(state, key, whole)) : std::nullopt;
}

// Earlier versions had these in the root.
void move_former_entries(NamedArrays& state) {
  for (auto [former, key] : {std::pair{"grad_norm", grad_norm_key}, {"skipped", skipped_key}}) {
    auto entry = state.extract(former);
    if (!entry.empty()) {
      state.insert_or_assign(key, std::move(entry.mapped()));
    }
  }
}

std::uint64_t number(const std::optional<mx::array>& count) {
  return count ? mx::array(*count).item<std::uint64_t>() : 0;
}

// Python has no number of steps until the scale has had one.
std::optional<LossScale> take_loss_scale(NamedArrays& state) {
  auto value = take_scalar_if_any(state, loss_scale_key, false);
  auto steps = take_scalar_if_any(state, loss_scale_steps_key, true);
  if (!value) {
    return std::nullopt;
  }
  const mx::array none(std::uint32_t{0});
  return LossScale{
      std::move(*value), steps ? mx::astype(*steps, mx::uint32, mx::Device::cpu) : none};
}

// Where the state has a number that the rule keeps. `key`: a combination's, empty for the
// optimizer's own.
std::string key_of_kept(const std::string& key, const char* name) {
  return key.empty() ? name : "mlx_opt.groups." + key + "." + name;
}

} // namespace

std::uint64_t Optimizer::skipped() const {
  assignment();
  return number(skipped_);
}

std::optional<mx::array> Optimizer::grad_norm() const {
  assignment();
  return grad_norm_;
}

std::optional<mx::array> Optimizer::loss_scale() const {
  assignment();
  return loss_scale_ ? std::optional(loss_scale_->value) : std::nullopt;
}

void Optimizer::set_loss_scale(std::optional<double> value) {
  assignment();
  loss_scale_ = value ? std::optional(first_loss_scale(*value)) : std::nullopt;
}

NamedArrays Optimizer::state() const {
  NamedArrays state = {{"step", step_}};
  if (learning_rate_) {
    state.emplace("learning_rate", mx::array(*learning_rate_));
  }
  if (grad_norm_) {
    state.emplace(grad_norm_key, *grad_norm_);
  }
  if (skipped_) {
    state.emplace(skipped_key, *skipped_);
  }
  if (loss_scale_) {
    state.emplace(loss_scale_key, loss_scale_->value);
    state.emplace(loss_scale_steps_key, loss_scale_->steps);
  }
  write_state(pending_, state);
  const auto kept = kept_by(definition().program.rule());
  for (const auto& [key, numbers] : kept_) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      state.emplace(key_of_kept(key, kept[i].name), numbers[i]);
    }
  }
  for (const auto& [parameter, slots] : slots_) {
    for (size_t k = 0; k < slots.arrays.size(); ++k) {
      state.emplace(key_of(parameter, (*slots.slots)[k]->name), slots.arrays[k]);
    }
  }
  return state;
}

Arrays Optimizer::values() const {
  assignment();
  Arrays values = {step_};
  for (const auto& x : {grad_norm_, skipped_}) {
    if (x) {
      values.push_back(*x);
    }
  }
  if (loss_scale_) {
    values.insert(values.end(), {loss_scale_->value, loss_scale_->steps});
  }
  for (const auto& [name, gradient] : pending_.gradients) {
    values.push_back(gradient);
  }
  if (pending_.normalizer) {
    values.push_back(*pending_.normalizer);
  }
  for (const auto& [key, numbers] : kept_) {
    values.insert(values.end(), numbers.begin(), numbers.end());
  }
  for (const auto& [parameter, slots] : slots_) {
    values.insert(values.end(), slots.arrays.begin(), slots.arrays.end());
  }
  return values;
}

void Optimizer::set_state(const NamedArrays& state) {
  NamedArrays rest = state;
  Arrays arrays = {take_scalar(rest, "step", true)};
  const bool uses_learning_rate = definition().uses_learning_rate;
  auto learning_rate = uses_learning_rate ? take_scalar(rest, "learning_rate", false)
                                          : take_scalar_if_any(rest, "learning_rate", false);
  move_former_entries(rest);
  // The norms that Python's telemetry has put there.
  std::erase_if(rest, [](const auto& entry) { return entry.first.starts_with(telemetry_prefix); });
  auto grad_norm = take_scalar_if_any(rest, grad_norm_key, false);
  auto skipped = take_scalar_if_any(rest, skipped_key, true);
  auto loss_scale = take_loss_scale(rest);
  PendingGradients pending = take_pending(rest);
  pending.gradients = trained(std::move(pending.gradients));
  auto kept = kept_;
  const auto infos = kept_by(definition().program.rule());
  for (auto& [key, numbers] : kept) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = take_scalar(rest, key_of_kept(key, infos[i].name), false);
      arrays.push_back(numbers[i]);
    }
  }
  if (loss_scale) {
    arrays.insert(arrays.end(), {loss_scale->value, loss_scale->steps});
  }
  for (const auto& x : {learning_rate, grad_norm, skipped}) {
    if (x) {
      arrays.push_back(*x);
    }
  }
  auto slots = slots_;
  for (auto& [parameter, own] : slots) {
    for (size_t k = 0; k < own.arrays.size(); ++k) {
      const SlotInfo& slot = *(*own.slots)[k];
      const std::string key = key_of(parameter, slot.name);
      mx::array given = take(rest, key);
      const mx::Dtype expected = own.arrays[k].dtype();
      if (!has_one_dtype(slot)) {
        check_operand(key, "state", given, own.arrays[k].shape(), "expected");
      } else if (given.dtype() != expected || given.shape() != own.arrays[k].shape()) {
        reject(
            key + ": state " + dtype_text(given.dtype()) + " " + shape_text(given.shape()) +
            ", expected " + dtype_text(expected) + " " + shape_text(own.arrays[k].shape()));
      }
      own.arrays[k] = std::move(given);
      arrays.push_back(own.arrays[k]);
    }
  }
  for (const auto& [name, gradient] : pending.gradients) {
    arrays.push_back(gradient);
  }
  if (!rest.empty()) {
    reject("the state's \"" + rest.begin()->first + "\" belongs to no parameter of this optimizer");
  }
  mx::eval(arrays);
  step_ = arrays[0];
  attempts_ = number(step_) + number(skipped);
  learning_rate_ = learning_rate ? std::optional(learning_rate->item<float>()) : std::nullopt;
  skipped_ = std::move(skipped);
  grad_norm_ = std::move(grad_norm);
  loss_scale_ = std::move(loss_scale);
  kept_ = std::move(kept);
  pending_ = std::move(pending);
  slots_ = std::move(slots);
}

void Optimizer::save(const std::string& path) const {
  const NamedArrays own = state();
  mx::save_safetensors(path, {own.begin(), own.end()});
}

void Optimizer::load(const std::string& path) {
  try {
    const auto arrays = mx::load_safetensors(path).first;
    set_state({arrays.begin(), arrays.end()});
  } catch (const std::exception& error) {
    throw std::runtime_error("mlx_opt: cannot load " + path + ": " + error.what());
  }
}

} // namespace mlx_opt
