// The optimizers and their hyperparameters, with the defaults of mlx.optimizers.
#pragma once

#include <variant>

namespace mlx_opt {

/// Stochastic gradient descent: plain, with momentum (Polyak, 1964) or with Nesterov's momentum
/// (Sutskever et al., ICML 2013). State: v. `nesterov` needs momentum > 0 and dampening 0.
struct SGD {
  double momentum = 0.0;
  double weight_decay = 0.0; // added to the gradient
  double dampening = 0.0;
  bool nesterov = false;
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
};

/// AdamW: Loshchilov and Hutter, ICLR 2019. State: m, v. Betas in [0, 1), eps >= 0.
struct AdamW {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  bool bias_correction = false;
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
};

/// Every optimizer with the name of its function.
#define MLX_OPT_FOR_EACH_OPTIMIZER(OPTIMIZER) \
  OPTIMIZER(adadelta, AdaDelta)               \
  OPTIMIZER(adagrad, Adagrad)                 \
  OPTIMIZER(adam, Adam)                       \
  OPTIMIZER(adamax, Adamax)                   \
  OPTIMIZER(adamw, AdamW)                     \
  OPTIMIZER(lion, Lion)                       \
  OPTIMIZER(rmsprop, RMSprop)                 \
  OPTIMIZER(sgd, SGD)

using Hyperparameters = std::variant<SGD, RMSprop, Adagrad, AdaDelta, Adam, AdamW, Adamax, Lion>;

} // namespace mlx_opt
