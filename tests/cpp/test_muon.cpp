// Muon, whose step depends on whole matrices.
#include <doctest/doctest.h>

#include <cmath>

#include "mlx/mlx.h"
#include "mlx_opt/mlx_opt.h"

namespace mx = mlx::core;
using mlx_opt::AdjustLr;
using mlx_opt::Muon;
using mlx_opt::NamedArrays;

namespace {

// q p, of which q is the orthogonal factor since p is symmetric and positive: a rotation, and the
// same above zeros, whose columns have length 1 too.
mx::array p() {
  return mx::array({2.0f, 1.0f, 1.0f, 3.0f}, {2, 2});
}

mx::array q() {
  const float c = std::cos(0.7f), s = std::sin(0.7f);
  return mx::array({c, -s, s, c}, {2, 2});
}

mx::array tall(const mx::array& x) {
  return mx::concatenate({x, mx::zeros({6, 2})}, 0);
}

// The step without momentum and with iterations that converge.
Muon plain() {
  return {
      .momentum = 0.0,
      .weight_decay = 0.0,
      .nesterov = false,
      .ns_steps = 9,
      .ns_coefficients = mlx_opt::polar_express()};
}

NamedArrays moved(const Muon& hypers) {
  NamedArrays named = {
      {"matrix", mx::full({2, 2}, 1.0f)},
      {"tall", mx::full({8, 2}, 1.0f)},
      {"deep", mx::full({2, 2, 1}, 1.0f)},
      {"vector", mx::full({2}, 1.0f)},
      {"empty", mx::zeros({0, 3})}};
  mlx_opt::Optimizer optimizer(named, hypers, 0.1);
  const mx::array g = mx::matmul(q(), p());
  optimizer.update(
      named,
      {{"matrix", g},
       {"tall", tall(g)},
       {"deep", mx::reshape(g, {2, 2, 1})},
       {"vector", mx::array({0.5f, -2.0f})},
       {"empty", mx::zeros({0, 3})}});
  return named;
}

bool close(const mx::array& x, const mx::array& expected) {
  return x.shape() == expected.shape() && mx::allclose(x, expected, 0.0, 1e-4).item<bool>();
}

mx::array less(double rate, const mx::array& x, double from = 1.0) {
  return mx::array(float(from)) - mx::array(float(rate)) * x;
}

} // namespace

TEST_CASE("Muon goes by the orthogonal factor of a matrix, and by a vector as it is") {
  const auto got = moved(plain());
  CHECK(close(got.at("matrix"), less(0.1, q())));
  CHECK(close(got.at("tall"), less(0.1 * std::sqrt(8.0 / 2.0), tall(q()))));
  CHECK(close(got.at("deep"), less(0.1 * std::sqrt(2.0), mx::reshape(q(), {2, 2, 1}))));
  CHECK(close(got.at("vector"), less(0.1, mx::array({0.5f, -2.0f}))));
}

TEST_CASE("Muon's learning rate can be AdamW's") {
  Muon hypers = plain();
  hypers.adjust_lr = AdjustLr::match_rms_adamw;
  const auto got = moved(hypers);
  CHECK(close(got.at("matrix"), less(0.1 * 0.2 * std::sqrt(2.0), q())));
  CHECK(close(got.at("tall"), less(0.1 * 0.2 * std::sqrt(8.0), tall(q()))));
  CHECK(close(got.at("deep"), less(0.1 * 0.2 * std::sqrt(2.0), mx::reshape(q(), {2, 2, 1}))));
}

TEST_CASE("Muon's decay is added to the gradient or decoupled") {
  Muon hypers = plain();
  hypers.weight_decay = 0.5;
  CHECK(close(moved(hypers).at("vector"), less(0.1, mx::array({1.0f, -1.5f}))));
  hypers.decoupled_weight_decay = true;
  const auto got = moved(hypers);
  CHECK(close(got.at("vector"), less(0.1, mx::array({0.5f, -2.0f}), 0.95)));
  CHECK(close(got.at("matrix"), less(0.1, q(), 0.95)));
}
