#include "mlx_opt/api/named_values.h"

namespace mlx_opt {
namespace {

Values adam_values(const auto& h) {
  return {
      {"betas[0]", h.beta1},
      {"betas[1]", h.beta2},
      {"eps", h.eps},
      {"bias_correction", h.bias_correction},
      {"nesterov", h.nesterov},
      {"amsgrad", h.amsgrad},
      {"cautious", h.cautious}};
}

void add_options(Values& values, const auto& h) {
  values["weight_decay"] = h.weight_decay;
  values["weight_decay_kind"] = static_cast<double>(h.weight_decay_kind);
  values["max_learning_rate"] = h.max_learning_rate;
  values["cautious_weight_decay"] = h.cautious_weight_decay;
  values["maximize"] = h.maximize;
}

NamedValues named(const SGD& h) {
  Values values = {{"momentum", h.momentum}, {"dampening", h.dampening}, {"nesterov", h.nesterov}};
  add_options(values, h);
  return {"SGD", std::move(values)};
}

NamedValues named(const RMSprop& h) {
  return {"RMSprop", {{"alpha", h.alpha}, {"eps", h.eps}}};
}

NamedValues named(const Adagrad& h) {
  return {"Adagrad", {{"eps", h.eps}}};
}

NamedValues named(const AdaDelta& h) {
  return {"AdaDelta", {{"rho", h.rho}, {"eps", h.eps}}};
}

NamedValues named(const Adam& h) {
  Values values = adam_values(h);
  add_options(values, h);
  return {"AdamW", std::move(values)};
}

NamedValues named(const AdamW& h) {
  Values values = adam_values(h);
  add_options(values, h);
  return {"AdamW", std::move(values)};
}

NamedValues named(const Adamax& h) {
  return {"Adamax", {{"betas[0]", h.beta1}, {"betas[1]", h.beta2}, {"eps", h.eps}}};
}

NamedValues named(const Lion& h) {
  Values values = {{"betas[0]", h.beta1}, {"betas[1]", h.beta2}, {"cautious", h.cautious}};
  add_options(values, h);
  return {"Lion", std::move(values)};
}

NamedValues named(const Adafactor& h) {
  Values values = {
      {"eps[0]", h.eps.first},
      {"eps[1]", h.eps.second},
      {"clip_threshold", h.clip_threshold},
      {"decay_rate", h.decay_rate},
      {"weight_decay", h.weight_decay},
      {"scale_parameter", h.scale_parameter},
      {"relative_step", h.relative_step},
      {"warmup_init", h.warmup_init}};
  if (h.beta_1) {
    values["beta_1"] = *h.beta_1;
  }
  return {"Adafactor", std::move(values)};
}

NamedValues named(const Muon& h) {
  Values values = {{"momentum", h.momentum}, {"nesterov", h.nesterov}};
  add_options(values, h);
  if (h.decoupled_weight_decay) {
    values["weight_decay_kind"] = static_cast<double>(WeightDecayKind::decoupled);
  }
  values["normuon"] = h.normuon;
  values["adamuon"] = h.adamuon;
  values["beta2"] = h.beta2;
  return {"Muon", std::move(values)};
}

NamedValues named(const RuleByName& h) {
  return {h.name, h.hypers};
}

} // namespace

NamedValues named_values(const Hyperparameters& hypers) {
  return std::visit([](const auto& h) { return named(h); }, hypers);
}

} // namespace mlx_opt
