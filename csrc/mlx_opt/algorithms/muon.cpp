#include "mlx_opt/algorithms/muon.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mlx/ops.h"
#include "mlx_opt/algorithms/newton_schulz.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/types/arrays.h"

namespace mlx_opt {
namespace {

bool is_matrix(const mx::array& x) {
  return x.ndim() >= 2 && x.size() > 0;
}

// Of the first dimension by all others.
mx::array matrix_of(const mx::array& x, mx::Stream stream) {
  return x.ndim() == 2 ? x : mx::reshape(x, {x.shape(0), -1}, stream);
}

// What the learning rate is multiplied with.
double adjustment(AdjustLr adjust_lr, const mx::array& x) {
  if (adjust_lr == AdjustLr::original) {
    return std::sqrt(std::max(1.0, double(x.shape(-2)) / x.shape(-1)));
  }
  const double rows = x.shape(0), columns = double(x.size()) / rows;
  return 0.2 * std::sqrt(std::max(rows, columns));
}

// Puts the orthogonal factors in the place of the matrices.
void orthogonalize(Arrays& directions, const Muon& hypers, mx::Stream stream) {
  Arrays matrices;
  std::vector<double> scales;
  for (const mx::array& x : directions) {
    if (is_matrix(x)) {
      matrices.push_back(matrix_of(x, stream));
      scales.push_back(adjustment(hypers.adjust_lr, x));
    }
  }
  auto factors = orthogonalized(
      matrices,
      scales,
      hypers.ns_coefficients,
      hypers.ns_steps,
      hypers.ns_dtype,
      stack_elements,
      stream);
  auto factor = factors.begin();
  for (mx::array& x : directions) {
    if (is_matrix(x)) {
      x = mx::reshape(*factor++, x.shape(), stream);
    }
  }
}

// For the descent, whose gradients are made of scaled ones: only whether it is taken.
std::optional<GradientScale> once_more(
    const std::optional<GradientScale>& scale, mx::Stream stream) {
  if (!scale || !scale->skip_nonfinite) {
    return std::nullopt;
  }
  const mx::array nan(std::numeric_limits<float>::quiet_NaN());
  const mx::array taken = mx::isfinite(scale->value, stream);
  return GradientScale{mx::where(taken, mx::array(1.0f), nan, stream), true};
}

} // namespace

std::vector<mx::array> muon(
    std::vector<mx::array> operands,
    const Muon& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const std::optional<GradientScale>& scale,
    mx::Stream stream) {
  Arrays parameters;
  for (size_t i = 0; i < operands.size(); i += 3) {
    parameters.push_back(operands[i]);
  }
  const double decay = hypers.weight_decay;
  const double coupled = hypers.decoupled_weight_decay ? 0.0 : decay;
  Arrays results = mlx_opt::step(
      Rule::Muon,
      std::move(operands),
      {hypers.momentum, hypers.nesterov ? 1.0 : 0.0, coupled},
      learning_rate,
      step,
      stream,
      scale);
  Arrays directions;
  for (size_t i = 0; i < results.size(); i += 2) {
    directions.push_back(std::move(results[i]));
  }
  orthogonalize(directions, hypers, stream);
  Arrays descent;
  for (size_t i = 0; i < parameters.size(); ++i) {
    descent.push_back(std::move(parameters[i]));
    descent.push_back(std::move(directions[i]));
  }
  // Of a direction of length 1 plain descent with decay is descent with decoupled decay.
  Arrays successors = mlx_opt::step(
      Rule::SGD,
      std::move(descent),
      {hypers.decoupled_weight_decay ? decay : 0.0},
      learning_rate,
      step,
      stream,
      once_more(scale, stream));
  for (size_t i = 0; i < successors.size(); ++i) {
    results[2 * i] = std::move(successors[i]);
  }
  return results;
}

} // namespace mlx_opt
