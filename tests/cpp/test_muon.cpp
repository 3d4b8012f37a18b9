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

TEST_CASE("Muon's blocks have orthogonal factors of their own") {
  const mx::array g = mx::matmul(q(), p());
  const NamedArrays gradients = {
      {"equal", mx::concatenate({g, 2.0f * g}, 0)},
      {"rows", mx::concatenate({g, tall(g)}, 0)},
      {"experts", mx::stack({g, 3.0f * g})}};
  NamedArrays named;
  for (const auto& [name, x] : gradients) {
    named.emplace(name, mx::zeros(x.shape()));
  }
  const std::vector<mlx_opt::Group> groups = {
      {.match = {"rows"}, .split = {2, 8}}, {.match = {"*"}, .split = {2}}};
  mlx_opt::Optimizer optimizer(named, plain(), 0.1, groups);
  optimizer.update(named, gradients);
  CHECK(close(named.at("equal"), less(0.1, mx::concatenate({q(), q()}, 0), 0.0)));
  CHECK(close(named.at("rows"), less(0.1, mx::concatenate({q(), 2.0f * tall(q())}, 0), 0.0)));
  CHECK(close(named.at("experts"), less(0.1, mx::stack({q(), q()}), 0.0)));

  CHECK_THROWS_WITH_AS(
      mlx_opt::Optimizer(
          {{"w", mx::zeros({4, 2})}}, plain(), 0.1, {{.match = {"w"}, .split = {3}}}),
      "mlx_opt: w: split [3], parameter (4, 2)",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      mlx_opt::Optimizer(
          {{"w", mx::zeros({4, 2})}}, mlx_opt::Lion{}, 0.1, {{.match = {"w"}, .split = {2}}}),
      "mlx_opt: a group has a split, which only Muon has",
      std::invalid_argument);
}

TEST_CASE("Muon divides by second moments") {
  // Rows of norms 1 and 0, and elements of which some are 0.
  Muon hypers = plain();
  hypers.normuon = true;
  hypers.beta2 = 0.5;
  mlx_opt::Optimizer rows({{"w", mx::zeros({8, 2})}, {"b", mx::zeros({2})}}, hypers, 0.1);
  NamedArrays named = {{"w", mx::zeros({8, 2})}, {"b", mx::zeros({2})}};
  rows.update(named, {{"w", tall(mx::matmul(q(), p()))}});
  CHECK(close(named.at("w"), less(0.2, tall(q()), 0.0)));
  CHECK(rows.state().count("b.s") == 0);
  const mx::array moments = rows.state().at("w.s");
  CHECK(close(mx::slice(moments, {0}, {2}), mx::full({2}, 0.25f)));
  CHECK(close(mx::slice(moments, {2}, {8}), mx::zeros({6})));

  hypers.normuon = false;
  hypers.adamuon = true;
  mlx_opt::Optimizer elements({{"w", mx::zeros({2, 2})}}, hypers, 0.1);
  named = {{"w", mx::zeros({2, 2})}};
  elements.update(named, {{"w", mx::matmul(q(), p())}});
  const float size =
      std::sqrt(2.0f) / 2.0f; // all elements have one size, and the norm is that of q
  CHECK(close(named.at("w"), less(0.1 * size, mx::sign(q()), 0.0)));
  CHECK(close(elements.state().at("w.s"), 0.5f * mx::square(q())));
  const auto before = elements.state();
  elements.update(named, {{"w", mx::full({2, 2}, NAN)}}, {.skip_nonfinite = true});
  CHECK(mx::array_equal(elements.state().at("w.s"), before.at("w.s")).item<bool>());

  hypers.normuon = true;
  CHECK_THROWS_WITH_AS(
      mlx_opt::Optimizer(named, hypers, 0.1),
      "mlx_opt Muon: normuon and adamuon cannot be combined",
      std::invalid_argument);
}

TEST_CASE("Muon's direction and factor may be scaled by rows and columns") {
  // Rows of a diagonal matrix have norms that only the equalized direction forgets.
  const mx::array g({3.0f, 0.0f, 0.0f, 1e-3f}, {2, 2});
  Muon hypers = plain();
  hypers.ns_steps = 0;
  hypers.equalize = mlx_opt::Equalize::rows;
  hypers.normalize = mlx_opt::Normalize::frobenius;
  NamedArrays named = {{"w", mx::zeros({2, 2})}};
  mlx_opt::Optimizer optimizer(named, hypers, 0.1);
  optimizer.update(named, {{"w", g}});
  const float second = 1e-3f / std::sqrt(1e-6f + 1e-8f);
  const float norm = std::sqrt((1.0f + second * second) / 2.0f);
  CHECK(close(named.at("w"), less(0.1 / norm, mx::array({1.0f, 0.0f, 0.0f, second}, {2, 2}), 0.0)));
}

TEST_CASE("Muon may keep the norm of a matrix") {
  Muon hypers = plain();
  hypers.hyperball = true;
  const mx::array w = mx::array({3.0f, 0.0f, 0.0f, 4.0f}, {2, 2}); // of norm 5
  NamedArrays named = {{"w", w}, {"b", mx::full({2}, 1.0f)}};
  mlx_opt::Optimizer optimizer(named, hypers, 0.1);
  const NamedArrays gradients = {{"w", mx::matmul(q(), p())}, {"b", mx::full({2}, 1.0f)}};
  optimizer.update(named, gradients);
  const mx::array moved = w - mx::array(0.1f * 5.0f / std::sqrt(2.0f)) * q();
  const mx::array norm = mx::sqrt(mx::sum(mx::square(moved)));
  CHECK(close(named.at("w"), moved * (mx::array(5.0f) / norm)));
  CHECK(close(named.at("b"), mx::full({2}, 0.9f)));

  const mx::array before = mx::array(named.at("w"));
  NamedArrays broken = gradients;
  broken.at("b") = mx::full({2}, NAN);
  optimizer.update(named, broken, {.skip_nonfinite = true});
  CHECK(mx::array_equal(named.at("w"), before).item<bool>());

  hypers.weight_decay = 0.1;
  CHECK_THROWS_WITH_AS(
      mlx_opt::Optimizer(named, hypers, 0.1),
      "mlx_opt Muon: hyperball needs a weight_decay of 0",
      std::invalid_argument);
}
