// Every optimizer of the C++ interface, the elementwise ones with formulas in double precision.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "mlx_opt/mlx_opt.h"

namespace optimizers {

using Values = std::vector<double>;

/// One element: changes w and its state by gradient g.
using Formula = std::function<void(double& w, Values& state, double g, double lr, int step)>;

struct Case {
  std::string name;
  mlx_opt::Hyperparameters hypers;
  Formula formula;
};

inline Formula adam(double b1, double b2, double eps, double decay, bool correct) {
  return [=](double& w, Values& s, double g, double lr, int step) {
    s[0] = b1 * s[0] + (1 - b1) * g;
    s[1] = b2 * s[1] + (1 - b2) * g * g;
    const double c1 = correct ? 1 - std::pow(b1, step) : 1;
    const double c2 = correct ? 1 - std::pow(b2, step) : 1;
    w -= lr * decay * w + lr / c1 * s[0] / (std::sqrt(s[1] / c2) + eps);
  };
}

inline Formula sgd(double momentum, double dampening, double decay, bool nesterov) {
  return [=](double& w, Values& s, double g, double lr, int) {
    const double d = g + decay * w;
    s[0] = momentum * s[0] + (momentum > 0 ? (1 - dampening) * d : 0);
    w -= lr * (momentum == 0 ? d : nesterov ? d + momentum * s[0] : s[0]);
  };
}

inline const std::vector<Case>& elementwise() {
  using namespace mlx_opt;
  static const std::vector<Case> cases = {
      {"SGD", SGD{.weight_decay = 0.1}, sgd(0, 0, 0.1, false)},
      {"SGD with momentum",
       SGD{.momentum = 0.9, .weight_decay = 0.1, .dampening = 0.3},
       sgd(0.9, 0.3, 0.1, false)},
      {"SGD of Nesterov",
       SGD{.momentum = 0.9, .weight_decay = 0.1, .nesterov = true},
       sgd(0.9, 0, 0.1, true)},
      {"RMSprop",
       RMSprop{.alpha = 0.9, .eps = 1e-6},
       [](double& w, Values& s, double g, double lr, int) {
         s[0] = 0.9 * s[0] + 0.1 * g * g;
         w -= lr * g / (std::sqrt(s[0]) + 1e-6);
       }},
      {"Adagrad",
       Adagrad{.eps = 1e-6},
       [](double& w, Values& s, double g, double lr, int) {
         s[0] += g * g;
         w -= lr * g / (std::sqrt(s[0]) + 1e-6);
       }},
      {"AdaDelta",
       AdaDelta{.rho = 0.8, .eps = 1e-4},
       [](double& w, Values& s, double g, double lr, int) {
         s[0] = 0.8 * s[0] + 0.2 * g * g;
         const double d = std::sqrt(s[1] + 1e-4) / std::sqrt(s[0] + 1e-4) * g;
         s[1] = 0.8 * s[1] + 0.2 * d * d;
         w -= lr * d;
       }},
      {"Adam",
       Adam{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .bias_correction = true},
       adam(0.8, 0.95, 1e-6, 0, true)},
      {"AdamW",
       AdamW{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.1},
       adam(0.8, 0.95, 1e-6, 0.1, false)},
      {"AdamW with coupled decay",
       AdamW{.weight_decay = 0.1, .nesterov = true, .weight_decay_kind = WeightDecayKind::coupled},
       [](double& w, Values& s, double g, double lr, int) {
         const double d = g + 0.1 * w;
         s[0] = 0.9 * s[0] + 0.1 * d;
         s[1] = 0.999 * s[1] + 0.001 * d * d;
         w -= lr * (0.9 * s[0] + 0.1 * d) / (std::sqrt(s[1]) + 1e-8);
       }},
      {"Adam of Reddi",
       Adam{.amsgrad = true},
       [](double& w, Values& s, double g, double lr, int) {
         s[0] = 0.9 * s[0] + 0.1 * g;
         s[1] = 0.999 * s[1] + 0.001 * g * g;
         s[2] = std::max(s[2], s[1]);
         w -= lr * s[0] / (std::sqrt(s[2]) + 1e-8);
       }},
      {"SGD that ascends and decays by itself",
       SGD{.weight_decay = 0.1,
           .weight_decay_kind = WeightDecayKind::independent,
           .maximize = true},
       [](double& w, Values&, double g, double lr, int) { w += lr * g - 0.1 * w; }},
      {"Lion with corrected decay",
       Lion{
           .weight_decay = 0.1,
           .weight_decay_kind = WeightDecayKind::corrected,
           .max_learning_rate = 0.5},
       [](double& w, Values& s, double g, double lr, int) {
         const double c = 0.9 * s[0] + 0.1 * g;
         s[0] = 0.99 * s[0] + 0.01 * g;
         w -= lr * lr / 0.5 * 0.1 * w + lr * (c > 0 ? 1 : c < 0 ? -1 : 0);
       }},
      {"Adamax",
       Adamax{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6},
       [](double& w, Values& s, double g, double lr, int) {
         s[0] = 0.8 * s[0] + 0.2 * g;
         s[1] = std::max(0.95 * s[1], std::abs(g));
         w -= lr * s[0] / (s[1] + 1e-6);
       }},
      {"Lion",
       Lion{.beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.1},
       [](double& w, Values& s, double g, double lr, int) {
         const double c = 0.8 * s[0] + 0.2 * g;
         s[0] = 0.95 * s[0] + 0.05 * g;
         w -= lr * 0.1 * w + lr * (c > 0 ? 1 : c < 0 ? -1 : 0);
       }},
      {"Signum",
       RuleByName{"Signum", {{"beta", 0.8}, {"weight_decay", 0.1}}},
       [](double& w, Values& s, double g, double lr, int) {
         s[0] = 0.8 * s[0] + 0.2 * g;
         w -= lr * 0.1 * w + lr * (s[0] > 0 ? 1 : s[0] < 0 ? -1 : 0);
       }},
      {"SignSGD",
       RuleByName{"SignSGD", {{"weight_decay", 0.1}}},
       [](double& w, Values&, double g, double lr, int) {
         w -= lr * 0.1 * w + lr * (g > 0 ? 1 : g < 0 ? -1 : 0);
       }},
      {"AdEMAMix",
       RuleByName{
           "AdEMAMix",
           {{"betas[2]", 0.99}, {"weight_decay", 0.1}, {"alpha_warmup", 2}, {"beta3_warmup", 3}}},
       [](double& w, Values& s, double g, double lr, int step) {
         const double done = std::min(step / 3.0, 1.0);
         const double b3 = std::exp(1 / ((1 - done) / std::log(0.9) + done / std::log(0.99)));
         s[0] = 0.9 * s[0] + 0.1 * g;
         s[1] = b3 * s[1] + (1 - b3) * g;
         s[2] = 0.999 * s[2] + 0.001 * g * g;
         const double m = s[0] / (1 - std::pow(0.9, step)) + 2 * std::min(step / 2.0, 1.0) * s[1];
         w -= lr * 0.1 * w + lr * m / (std::sqrt(s[2] / (1 - std::pow(0.999, step))) + 1e-8);
       }},
      {"Adan",
       RuleByName{"Adan", {{"weight_decay", 0.1}}},
       [](double& w, Values& s, double g, double lr, int step) {
         const double difference = step == 1 ? 0 : g - s[3];
         const double ahead = g + 0.92 * difference;
         s[0] = 0.98 * s[0] + 0.02 * g;
         s[1] = 0.92 * s[1] + 0.08 * difference;
         s[2] = 0.99 * s[2] + 0.01 * ahead * ahead;
         s[3] = g;
         const double m = s[0] / (1 - std::pow(0.98, step));
         const double v = s[1] / (1 - std::pow(0.92, step));
         w -= lr * (m + 0.92 * v) / (std::sqrt(s[2] / (1 - std::pow(0.99, step))) + 1e-8);
         w /= 1 + lr * 0.1;
       }},
      {"MADGRAD",
       RuleByName{"MADGRAD", {{"weight_decay", 0.1}}},
       [](double& w, Values& s, double g, double lr, int step) {
         const double d = g + 0.1 * w;
         s[0] += lr * std::sqrt(step) * d;
         s[1] += lr * std::sqrt(step) * d * d;
         s[2] = step == 1 ? w : s[2];
         w = 0.9 * w + 0.1 * (s[2] - s[0] / (std::cbrt(s[1]) + 1e-6));
       }},
  };
  return cases;
}

/// Those and the others, which have no formulas.
inline std::vector<std::pair<std::string, mlx_opt::Hyperparameters>> all() {
  using mlx_opt::Adafactor;
  std::vector<std::pair<std::string, mlx_opt::Hyperparameters>> all = {
      {"Adafactor", Adafactor{}},
      {"Adafactor with a first moment", Adafactor{.beta_1 = 0.9, .relative_step = false}},
      {"Lamb", mlx_opt::RuleByName{"Lamb", {{"weight_decay", 0.1}}}},
      {"Muon", mlx_opt::Muon{}},
      {"Muon with decoupled decay", mlx_opt::Muon{.decoupled_weight_decay = true}}};
  for (const Case& each : elementwise()) {
    all.emplace_back(each.name, each.hypers);
  }
  return all;
}

} // namespace optimizers
