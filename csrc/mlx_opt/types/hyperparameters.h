// The optimizers and their hyperparameters, with the defaults of mlx.optimizers.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "mlx/dtype.h"
#include "mlx_opt/types/coefficients.h"

namespace mlx_opt {

/// What a step subtracts from a parameter w for its weight decay r, with learning rate l.
enum class WeightDecayKind {
  coupled,     // nothing: r w is added to the gradient
  decoupled,   // l r w: Loshchilov and Hutter, ICLR 2019
  independent, // r w
  corrected,   // l^2 / max_learning_rate r w: Defazio, arXiv:2506.02285
};

/// Stochastic gradient descent: plain, with momentum (Polyak, 1964) or with Nesterov's momentum
/// (Sutskever et al., ICML 2013). State: v. `nesterov` needs momentum > 0 and dampening 0.
struct SGD {
  double momentum = 0.0;
  double weight_decay = 0.0;
  double dampening = 0.0;
  bool nesterov = false;
  WeightDecayKind weight_decay_kind = WeightDecayKind::coupled;
  double max_learning_rate = 0.0;     // of the whole run; corrected decay needs it
  bool cautious_weight_decay = false; // if true, decays only where the update shrinks a parameter
  bool maximize = false;              // if true, takes the negative of the gradients
};

/// RMSprop: Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012. State: v.
/// alpha >= 0, eps > 0.
struct RMSprop {
  double alpha = 0.99;
  double eps = 1e-8;
};

/// Adagrad: Duchi, Hazan and Singer, JMLR 2011. State: v. eps > 0.
struct Adagrad {
  double eps = 1e-8;
};

/// AdaDelta: Zeiler, arXiv:1212.5701, with a learning rate. State: v, u. rho >= 0, eps > 0.
struct AdaDelta {
  double rho = 0.9;
  double eps = 1e-6;
};

/// Adam: Kingma and Ba, ICLR 2015. State: m, v. Betas in [0, 1), eps >= 0.
struct Adam {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  bool bias_correction = false;
  bool nesterov = false;
  bool amsgrad = false;  // Reddi et al., ICLR 2018; its State: v_max too
  bool cautious = false; // Liang et al., arXiv:2411.16085; not with amsgrad or coupled decay
  double weight_decay = 0.0;
  WeightDecayKind weight_decay_kind = WeightDecayKind::coupled;
  double max_learning_rate = 0.0;     // of the whole run; corrected decay needs it
  bool cautious_weight_decay = false; // if true, decays only where the update shrinks a parameter
  bool maximize = false;              // if true, takes the negative of the gradients
};

/// AdamW: Loshchilov and Hutter, ICLR 2019. State: m, v. Betas in [0, 1), eps >= 0.
struct AdamW {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  bool bias_correction = false;
  bool nesterov = false;
  bool amsgrad = false;  // as Adam's
  bool cautious = false; // as Adam's
  WeightDecayKind weight_decay_kind = WeightDecayKind::decoupled;
  double max_learning_rate = 0.0;     // of the whole run; corrected decay needs it
  bool cautious_weight_decay = false; // if true, decays only where the update shrinks a parameter
  bool maximize = false;              // if true, takes the negative of the gradients
};

/// Adamax: Kingma and Ba, ICLR 2015, section 7.1, without bias correction. State: m, v. Betas in
/// [0, 1), eps >= 0.
struct Adamax {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
};

/// Lion: Chen et al., arXiv:2302.06675. State: m. Betas in [0, 1).
struct Lion {
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0.0; // none if negative
  WeightDecayKind weight_decay_kind = WeightDecayKind::decoupled;
  double max_learning_rate = 0.0;     // of the whole run; corrected decay needs it
  bool cautious_weight_decay = false; // if true, decays only where the update shrinks a parameter
  bool maximize = false;              // if true, takes the negative of the gradients
  bool cautious = false;              // as Adam's
};

/// Adafactor: Shazeer and Stern, arXiv:1804.04235. State: for a parameter of two dimensions or more
/// exp_avg_sq_row (its shape without the last dimension) and exp_avg_sq_col (its shape without the
/// last but one), else exp_avg_sq; with beta_1 also exp_avg. A step throws std::invalid_argument if
/// there is no kernel for it (docs/rules/adafactor.md).
struct Adafactor {
  std::pair<double, double> eps = {1e-30, 1e-3}; // of the squared gradient, of the parameter; >= 0
  double clip_threshold = 1.0;                   // greatest root mean square of the update; > 0
  double decay_rate = -0.8;                      // <= 0
  std::optional<double> beta_1 = std::nullopt;   // in [0, 1); no first moment if left out
  double weight_decay = 0.0;
  bool scale_parameter = true;
  bool relative_step = true; // if true, the learning rate is not used
  bool warmup_init = false;
};

/// The factor of Muon's learning rate for a matrix of r rows and c columns.
enum class AdjustLr {
  original,        // sqrt(max(1, r / c)), of the parameter's last two dimensions
  match_rms_adamw, // 0.2 sqrt(max(r, c)): arXiv:2502.16982
};

/// What Muon does with the direction, a matrix, before the iterations: MuonEq, arXiv:2603.28254.
enum class Equalize {
  none,
  rows,    // divides each row by its norm
  columns, // divides each column by its norm
  both,    // divides by both, which are of the same matrix
  sign,    // takes the signs, as AdaMuon's paper does
};

/// What Muon does with the orthogonal factor: Muon+, arXiv:2602.21545.
enum class Normalize {
  none,
  rows,         // divides each row by its norm
  columns,      // divides each column by its norm
  rows_columns, // one after the other
  columns_rows,
  frobenius, // scales to the norm of an exact factor
};

/// Muon: Jordan et al., kellerjordan.github.io/posts/muon. State: v. A parameter of more than two
/// dimensions is treated as a matrix of its first dimension by all others. One of fewer is updated
/// by its momentum without orthogonalization, so give those to another Optimizer. mlx.optimizers
/// does not have the options from ns_dtype on.
struct Muon {
  double momentum = 0.95; // in [0, 1)
  double weight_decay = 0.01;
  bool nesterov = true;
  int ns_steps = 5; // Newton-Schulz iterations; >= 0
  /// Dtype of the matrix products. Default: bfloat16 for bfloat16 parameters, else float32.
  std::optional<mlx::core::Dtype> ns_dtype = std::nullopt;
  Coefficients ns_coefficients = quintic(); // or polar_express(), or other triples
  AdjustLr adjust_lr = AdjustLr::original;
  bool decoupled_weight_decay = false; // another name of WeightDecayKind::decoupled
  WeightDecayKind weight_decay_kind = WeightDecayKind::coupled;
  double max_learning_rate = 0.0;     // of the whole run; corrected decay needs it
  bool cautious_weight_decay = false; // if true, decays only where the update shrinks a parameter
  bool maximize = false;              // if true, takes the negative of the gradients
  Equalize equalize = Equalize::none;
  Normalize normalize = Normalize::none;
  bool normuon = false; // Li et al., arXiv:2510.05491. State: s too, of each row
  bool adamuon = false; // Si et al., arXiv:2507.11005. State: s too, of each element
  double beta2 = 0.95;  // of these; in [0, 1)
  /// If true, a matrix keeps its Frobenius norm, and the learning rate is relative to it. Needs a
  /// weight_decay of 0.
  bool hyperball = false;
};

/// Any rule that is not part of a composition, by the name of its optimizer, with hyperparameters
/// by the names that docs/rules gives them: RuleByName{"AdamW", {{"betas[1]", 0.95}}}.
/// Hyperparameters that are left out have their defaults.
struct RuleByName {
  std::string name;
  std::map<std::string, double> hypers = {};
};

/// Every optimizer with the name of its function.
#define MLX_OPT_FOR_EACH_OPTIMIZER(OPTIMIZER) \
  OPTIMIZER(adadelta, AdaDelta)               \
  OPTIMIZER(adafactor, Adafactor)             \
  OPTIMIZER(adagrad, Adagrad)                 \
  OPTIMIZER(adam, Adam)                       \
  OPTIMIZER(adamax, Adamax)                   \
  OPTIMIZER(adamw, AdamW)                     \
  OPTIMIZER(lion, Lion)                       \
  OPTIMIZER(muon, Muon)                       \
  OPTIMIZER(rmsprop, RMSprop)                 \
  OPTIMIZER(sgd, SGD)

using Hyperparameters = std::variant<
    SGD,
    RMSprop,
    Adagrad,
    AdaDelta,
    Adam,
    AdamW,
    Adamax,
    Lion,
    Adafactor,
    Muon,
    RuleByName>;

} // namespace mlx_opt
