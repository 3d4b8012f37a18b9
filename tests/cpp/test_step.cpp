#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "mlx/mlx.h"
#include "mlx_opt/graph/ops.h"

namespace mx = mlx::core;
using mlx_opt::Rule;

namespace {

const std::vector<mlx_opt::Scalar> adamw_hypers = {0.9, 0.999, 1e-8, 0.1, 0.0};

std::vector<mx::array> adamw(
    std::vector<mx::array> operands,
    int step = 1,
    const std::optional<mlx_opt::GradientScale>& scale = std::nullopt) {
  return mlx_opt::step(
      Rule::AdamW,
      std::move(operands),
      adamw_hypers,
      mx::array(0.01f),
      mx::array(step, mx::uint64),
      mx::Device::cpu,
      scale);
}

bool same_bits(const mx::array& x, const mx::array& y) {
  return x.dtype() == y.dtype() && x.nbytes() == y.nbytes() &&
         std::memcmp(x.data<char>(), y.data<char>(), x.nbytes()) == 0;
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

TEST_CASE("a scaled step is a step of the scaled gradient, in every layout") {
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    auto operand = [&](unsigned seed) {
      auto x = mx::random::uniform(0.0f, 1.0f, {37, 53}, mx::float32, mx::random::key(seed));
      x = mx::contiguous(mx::astype(x, dtype));
      x.eval();
      return x;
    };
    const auto w = operand(1), m = operand(2), v = operand(3), g = operand(4);
    auto transposed = mx::transpose(mx::contiguous(mx::transpose(g)));
    auto strided = mx::slice(mx::repeat(g, 2, 1), {0, 0}, {37, 106}, {1, 2});
    const mx::array factor(0.3f);
    auto expected = adamw({w, m, v, mx::multiply(mx::astype(g, mx::float32), factor)});
    for (const auto& gradient : {g, transposed, strided}) {
      for (bool skip_nonfinite : {false, true}) {
        auto got = adamw({w, m, v, gradient}, 1, mlx_opt::GradientScale{factor, skip_nonfinite});
        for (size_t k = 0; k < 3; ++k) {
          auto rounded = mx::astype(expected[k], dtype);
          mx::eval(got[k], rounded);
          CHECK(same_bits(got[k], rounded));
        }
      }
    }
  }
}

TEST_CASE("a scale that is not finite is applied, or the step is skipped") {
  for (float value : {INFINITY, -INFINITY, std::numeric_limits<float>::quiet_NaN()}) {
    for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      auto w = mx::astype(mx::arange(600.0), dtype);
      auto m = mx::astype(mx::transpose(mx::reshape(mx::arange(600.0), {20, 30})), dtype);
      w = mx::reshape(w, {30, 20});
      const auto v = mx::ones({30, 20}, dtype), g = mx::ones({30, 20}, dtype);
      mx::eval(w, m, v, g);
      auto kept = adamw({w, m, v, g}, 1, mlx_opt::GradientScale{mx::array(value), true});
      auto straight = mx::contiguous(m);
      mx::eval(kept[0], kept[1], kept[2], straight);
      CHECK(same_bits(kept[0], w));
      CHECK(same_bits(kept[1], straight));
      CHECK(same_bits(kept[2], v));
      auto applied = adamw({w, m, v, g}, 1, mlx_opt::GradientScale{mx::array(value), false});
      CHECK(mx::all(mx::isnan(applied[0])).item<bool>());
    }
  }
}

TEST_CASE("a step that is skipped converts where an applied one would") {
  auto w = mx::astype(mx::arange(1000.0), mx::bfloat16);
  const auto zeros = filled({1000}, 0.0f), g = filled({1000}, 1.0f);
  auto kept = adamw(
      {w, zeros, zeros, g},
      1,
      mlx_opt::GradientScale{mx::array(std::numeric_limits<float>::quiet_NaN()), true});
  auto expected = mx::astype(w, mx::float32);
  mx::eval(kept[0], expected);
  CHECK(same_bits(kept[0], expected));
}

TEST_CASE("a step that is skipped leaves its own buffers in place") {
  auto w = filled({1000}, 1.0f);
  const void* own = w.data<float>();
  std::vector<mx::array> operands;
  operands.push_back(std::move(w));
  for (int k = 0; k < 3; ++k) {
    operands.push_back(filled({1000}, 2.0f));
  }
  auto outputs = adamw(std::move(operands), 1, mlx_opt::GradientScale{mx::array(INFINITY), true});
  mx::eval(outputs);
  CHECK(outputs[0].data<float>() == own);
  CHECK(outputs[0].data<float>()[999] == 1.0f);
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
  CHECK_THROWS_AS(
      adamw({x, x, x, x}, 1, mlx_opt::GradientScale{mx::array({1.0f, 2.0f}), false}),
      std::invalid_argument);
  CHECK(adamw({}).empty());
}

TEST_CASE("Adafactor of no tensors asks for no kernel, of some for one that the device has") {
  const std::vector<mlx_opt::Scalar> hypers(9, 0.5);
  const mx::Stream gpu(0, mx::Device::gpu);
  const auto step = [&](std::vector<mx::array> operands) {
    const size_t tensors = operands.size() / 3;
    return mlx_opt::step(
        mlx_opt::Program(Rule::Adafactor),
        std::move(operands),
        {tensors, 0},
        hypers,
        mx::array(0.01f),
        mx::array(1, mx::uint64),
        gpu);
  };
  CHECK(step({}).empty());
  const std::vector<mx::array> tensor(3, filled({4}, 1.0f));
  CHECK_THROWS_WITH_AS(
      step(tensor), doctest::Contains("no kernel for this device"), std::invalid_argument);
}
