#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "mlx/mlx.h"
#include "mlx_opt/ops.h"

namespace mx = mlx::core;
using mlx_opt::Rule;

namespace {

const std::vector<mlx_opt::Scalar> adamw_hypers = {0.9, 0.999, 1e-8, 0.1, 0.0};

std::vector<mx::array> adamw(std::vector<mx::array> operands, int step = 1) {
  return mlx_opt::step(
      Rule::AdamW,
      std::move(operands),
      adamw_hypers,
      mx::array(0.01f),
      mx::array(step, mx::uint64),
      mx::Device::cpu);
}

mx::array filled(mx::Shape shape, float value) {
  auto x = mx::full(std::move(shape), value, mx::Device::cpu);
  x.eval();
  return x;
}

} // namespace

TEST_CASE("a step follows the formula") {
  auto outputs =
      adamw({filled({5}, 2.0f), filled({5}, 0.5f), filled({5}, 0.25f), filled({5}, 3.0f)});
  mx::eval(outputs);
  const double m = 0.9 * 0.5 + 0.1 * 3;
  const double v = 0.999 * 0.25 + 0.001 * 9;
  const double w = 2.0 - 0.01 * 0.1 * 2.0 - 0.01 * m / (std::sqrt(v) + 1e-8);
  for (int i = 0; i < 5; ++i) {
    CHECK(outputs[0].data<float>()[i] == doctest::Approx(w).epsilon(1e-6));
    CHECK(outputs[1].data<float>()[i] == doctest::Approx(m).epsilon(1e-6));
    CHECK(outputs[2].data<float>()[i] == doctest::Approx(v).epsilon(1e-6));
  }
}

TEST_CASE("buffers are reused where nobody else holds them, and only there") {
  auto w = filled({1000}, 1.0f);
  auto m = filled({1000}, 0.0f);
  const void* own = w.data<float>();
  const void* held = m.data<float>();
  std::vector<mx::array> operands;
  operands.push_back(std::move(w));
  operands.push_back(m);
  operands.push_back(filled({1000}, 0.0f));
  operands.push_back(filled({1000}, 1.0f));
  auto outputs = adamw(std::move(operands));
  mx::eval(outputs);
  CHECK(outputs[0].data<float>() == own);
  CHECK(outputs[1].data<float>() != held);
  CHECK(m.data<float>()[999] == 0.0f);
}

TEST_CASE("a held parameter is written to the gradient's buffer") {
  auto w = filled({1000}, 1.0f);
  auto g = filled({1000}, 1.0f);
  const void* lent = g.data<float>();
  std::vector<mx::array> operands = {w, filled({1000}, 0.0f), filled({1000}, 0.0f)};
  operands.push_back(std::move(g));
  auto outputs = adamw(std::move(operands));
  mx::eval(outputs);
  CHECK(outputs[0].data<float>() == lent);
  CHECK(w.data<float>()[0] == 1.0f);
}

TEST_CASE("a token that is dropped before its outputs are taken leaks nothing") {
  const size_t before = mx::get_active_memory();
  {
    auto outputs = adamw(
        {filled({1 << 20}, 1.0f),
         filled({1 << 20}, 0.0f),
         filled({1 << 20}, 0.0f),
         filled({1 << 20}, 1.0f)});
    outputs[0].eval();
  }
  mx::synchronize(mx::default_stream(mx::Device::cpu));
  CHECK(mx::get_active_memory() == before);
}

TEST_CASE("arguments that do not fit the rule are refused") {
  const auto x = filled({4}, 1.0f);
  CHECK_THROWS_AS(adamw({x, x, x}), std::invalid_argument);
  CHECK_THROWS_AS(adamw({x, x, x, filled({2, 2}, 1.0f)}), std::invalid_argument);
  CHECK_THROWS_AS(adamw({x, x, x, mx::astype(x, mx::int32)}), std::invalid_argument);
  CHECK_THROWS_AS(
      mlx_opt::step(Rule::SGD, {x, x}, {}, mx::array(0.1f), mx::array(1)), std::invalid_argument);
  CHECK_THROWS_AS(
      mlx_opt::step(Rule::SGD, {x, x}, {0.0}, mx::array({0.1f, 0.2f}), mx::array(1)),
      std::invalid_argument);
  CHECK(adamw({}).empty());
}
