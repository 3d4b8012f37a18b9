#include "mlx_opt/step/spec.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "mlx_opt/types/layout.h"

namespace mlx_opt {
namespace {

void require(bool holds, const char* what) {
  if (!holds) {
    throw std::invalid_argument(std::string("mlx_opt ") + what);
  }
}

bool is_decay_rate(double beta) {
  return 0.0 <= beta && beta < 1.0;
}

Definition define(const SGD& h) {
  require(
      !h.nesterov || (h.momentum > 0.0 && h.dampening == 0.0),
      "SGD: nesterov needs a momentum above 0 and a dampening of 0");
  if (h.momentum <= 0.0) {
    return {Rule::SGD, {"v"}, {h.weight_decay}};
  }
  return {
      h.nesterov ? Rule::Nesterov : Rule::Momentum,
      {"v"},
      {h.momentum, std::max(h.dampening, 0.0), h.weight_decay}};
}

Definition define(const RMSprop& h) {
  require(h.alpha >= 0.0, "RMSprop: alpha must not be negative");
  require(h.eps > 0.0, "RMSprop: eps must be above 0");
  return {Rule::RMSprop, {"v"}, {h.alpha, h.eps}};
}

Definition define(const Adagrad& h) {
  require(h.eps > 0.0, "Adagrad: eps must be above 0");
  return {Rule::Adagrad, {"v"}, {h.eps}};
}

Definition define(const AdaDelta& h) {
  require(h.rho >= 0.0, "AdaDelta: rho must not be negative");
  require(h.eps > 0.0, "AdaDelta: eps must be above 0");
  return {Rule::AdaDelta, {"v", "u"}, {h.rho, h.eps}};
}

Definition define(const AdamW& h) {
  require(is_decay_rate(h.beta1) && is_decay_rate(h.beta2), "Adam, AdamW: betas must be in [0, 1)");
  require(h.eps >= 0.0, "Adam, AdamW: eps must not be negative");
  const double bias_correction = h.bias_correction ? 1.0 : 0.0;
  return {Rule::AdamW, {"m", "v"}, {h.beta1, h.beta2, h.eps, h.weight_decay, bias_correction}};
}

Definition define(const Adam& h) {
  return define(AdamW{h.beta1, h.beta2, h.eps, 0.0, h.bias_correction});
}

Definition define(const Adamax& h) {
  require(is_decay_rate(h.beta1) && is_decay_rate(h.beta2), "Adamax: betas must be in [0, 1)");
  require(h.eps >= 0.0, "Adamax: eps must not be negative");
  return {Rule::Adamax, {"m", "v"}, {h.beta1, h.beta2, h.eps}};
}

Definition define(const Lion& h) {
  require(is_decay_rate(h.beta1) && is_decay_rate(h.beta2), "Lion: betas must be in [0, 1)");
  return {Rule::Lion, {"m"}, {h.beta1, h.beta2, std::max(h.weight_decay, 0.0)}};
}

Definition define(const Adafactor& h) {
  require(h.eps.first >= 0.0 && h.eps.second >= 0.0, "Adafactor: eps must not be negative");
  require(h.clip_threshold > 0.0, "Adafactor: clip_threshold must be above 0");
  require(h.decay_rate <= 0.0, "Adafactor: decay_rate must not be above 0");
  require(is_decay_rate(h.beta_1.value_or(0.0)), "Adafactor: beta_1 must be in [0, 1)");
  const auto flag = [](bool x) { return x ? 1.0 : 0.0; };
  Definition definition = {
      std::nullopt,
      {"exp_avg_sq"},
      {h.eps.first,
       h.eps.second,
       h.clip_threshold,
       h.decay_rate,
       h.beta_1.value_or(0.0),
       h.weight_decay,
       flag(h.scale_parameter),
       flag(h.relative_step),
       flag(h.warmup_init)},
      {"exp_avg_sq_row", "exp_avg_sq_col"},
      !h.relative_step};
  if (h.beta_1) {
    definition.state.push_back("exp_avg");
    definition.factored_state.push_back("exp_avg");
  }
  return definition;
}

Definition define(const Muon& h) {
  require(is_decay_rate(h.momentum), "Muon: momentum must be in [0, 1)");
  require(h.ns_steps >= 0, "Muon: ns_steps must not be negative");
  require(!h.ns_coefficients.empty(), "Muon: ns_coefficients must not be empty");
  require(!h.ns_dtype || is_storage(*h.ns_dtype), "Muon: ns_dtype must be a dtype of parameters");
  return {.rule = std::nullopt, .state = {"v"}, .hypers = {}, .muon = h};
}

} // namespace

Definition definition(const Hyperparameters& hypers) {
  return std::visit([](const auto& h) { return define(h); }, hypers);
}

} // namespace mlx_opt
