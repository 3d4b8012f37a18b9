// Rules of two passes over each tensor, with the fake of CUDA.
#include <cuda.h>

#include <cmath>
#include <numeric>

#include "checks.h"

using namespace mlx_opt;
using namespace steps;

namespace {

constexpr int fields = 3; // of Lamb: parameter, m, v
constexpr int count = fields + 1;

// So large that a tensor's rate affects every digit of its parameter.
Scalars large_step(std::optional<GradientScale> scale = std::nullopt) {
  return {mx::array(0.5f), mx::array(3, mx::uint64), std::move(scale)};
}

constexpr Tolerance tolerance = {.relative = 2e-6, .absolute = 2e-6};

void check_lamb(
    const std::vector<mx::array>& operands,
    const Scalars& scalars = large_step(),
    mx::Stream stream = fake::gpu_stream) {
  check_against_cpu(Rule::Lamb, operands, scalars, stream, tolerance);
}

std::vector<mx::array> lamb_operands(const std::vector<mx::Shape>& shapes, mx::Dtype dtype) {
  return operands_of(Rule::Lamb, shapes, dtype);
}

// Scales the elements by factors from `first` to `last`, so that the parts of a tensor have
// different shares of its sums.
mx::array ramp(const mx::array& x, float first, float last) {
  const auto size = static_cast<int>(x.size());
  const auto factors = mx::linspace(first, last, size, mx::float32, mx::Device::cpu);
  return evaluated(
      mx::multiply(x, mx::reshape(factors, x.shape(), mx::Device::cpu), mx::Device::cpu));
}

std::vector<mx::array> ramped(const std::vector<mx::Shape>& shapes) {
  auto operands = lamb_operands(shapes, mx::float32);
  for (size_t i = 0; i < operands.size(); i += count) {
    operands[i] = ramp(operands[i], 0.1f, 3.0f);
    operands[i + fields] = ramp(operands[i + fields], 3.0f, 0.1f);
  }
  return operands;
}

// The new parameter of one tensor, in double precision.
std::vector<double> lamb_in_double(const mx::array* operands, double learning_rate, double step) {
  const auto values = [&](int k) {
    const auto x = copies_of({operands[k]})[0];
    return std::vector<double>(x.data<float>(), x.data<float>() + x.size());
  };
  const auto w = values(0), m = values(1), v = values(2), g = values(3);
  std::vector<double> u(w.size());
  double sum_w = 0.0, sum_u = 0.0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double new_m = 0.9 * m[i] + 0.1 * g[i];
    const double new_v = 0.999 * v[i] + 0.001 * g[i] * g[i];
    const double mean = new_m / (1.0 - std::pow(0.9, step));
    const double square = new_v / (1.0 - std::pow(0.999, step));
    u[i] = mean / (std::sqrt(square) + 1e-6) + 0.1 * w[i];
    sum_w += w[i] * w[i];
    sum_u += u[i] * u[i];
  }
  std::vector<double> expected(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    expected[i] = w[i] - learning_rate * std::sqrt(sum_w / sum_u) * u[i];
  }
  return expected;
}

} // namespace

TEST_CASE("Lamb is what it is in double precision, at the edges of chunks and tiles") {
  auto operands = ramped(
      {{1},
       {3},
       {4095},
       {4096},
       {4097},
       {8192},
       {70003},
       {64, 64},
       {65, 63},
       {129, 200},
       {3, 4099}});
  for (size_t t : {7, 8, 9}) {
    const auto& shape = operands[t * count].shape();
    operands[t * count + fields] = transposed(shape, mx::float32, 90);
  }
  operands[10 * count + fields] =
      evaluated(mx::slice(numbers({3, 4100}, mx::float32, 91), {0, 1}, {3, 4100}));
  const auto got = run(Rule::Lamb, operands, sample_hypers(Rule::Lamb), large_step());
  check_clean();
  for (size_t t = 0; t < operands.size() / count; ++t) {
    const auto expected = lamb_in_double(&operands[t * count], 0.5, 3.0);
    const mx::array& w = got[t * fields];
    CAPTURE(t);
    REQUIRE(w.size() == expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      REQUIRE(w.data<float>()[i] == doctest::Approx(expected[i]).epsilon(3e-6));
    }
  }
}

TEST_CASE("Lamb of halves, on GPUs that narrow two at once and on others") {
  for (mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    const auto operands = operands_of_all_kinds(Rule::Lamb, dtype);
    check_lamb(operands);
    check_lamb(operands, large_step(), fake::older_gpu_stream);
  }
}

TEST_CASE("Lamb of mixes of storages") {
  const mx::Dtype storages[] = {mx::float32, mx::float16, mx::bfloat16};
  for (int i = 0; i < 6; ++i) {
    auto operands = operands_of_all_kinds(Rule::Lamb, mx::float32);
    for (size_t k = 0; k < operands.size(); ++k) {
      const mx::Dtype dtype = storages[(i + k % count * (1 + i / 3)) % 3];
      operands[k] = evaluated(mx::astype(operands[k], dtype));
    }
    check_lamb(operands);
  }
}

TEST_CASE("Lamb of parameters and states of any layout") {
  auto operands = ramped({{4100}, {40, 36}, {40, 36}, {9}, {70, 130}, {4500}});
  const auto at = [&](size_t tensor, int k) -> mx::array& { return operands[tensor * count + k]; };
  at(0, 3) = evaluated(mx::slice(numbers({4103}, mx::float32, 92), {3}, {4103}));
  at(1, 3) = evaluated(mx::broadcast_to(mx::array(0.5f), {40, 36}));
  at(2, 0) = transposed({40, 36}, mx::float32, 93);
  at(2, 3) = transposed({40, 36}, mx::float32, 94);
  at(3, 1) = evaluated(mx::slice(numbers({27}, mx::float32, 95), {1}, {27}, {3}));
  at(4, 0) = evaluated(mx::slice(numbers({70, 260}, mx::float32, 96), {0, 0}, {70, 260}, {1, 2}));
  at(5, 0) = evaluated(mx::slice(numbers({4503}, mx::float32, 97), {3}, {4503}));
  check_lamb(operands);
  Scalars scalars = large_step(GradientScale{mx::array(INFINITY), true});
  check_lamb(operands, scalars);
}

TEST_CASE("the other rules of two passes: mixes of storages and layouts, applied or not") {
  for (int i = elementwise_rules + 1; i < elementwise_rules + two_pass_rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    CAPTURE(info(rule).name);
    auto operands = operands_of_all_kinds(rule, mx::float32);
    const size_t width = info(rule).slots + 2;
    operands[3 * width] = transposed({5, 42}, mx::float32, 93);
    operands[3 * width] = evaluated(mx::reshape(operands[3 * width], {5, 6, 7}));
    for (size_t k = 1; k < operands.size(); k += width) {
      operands[k] = evaluated(mx::astype(operands[k], mx::bfloat16));
    }
    const auto check = [&](float value) {
      const GradientScale scale{mx::array(value), true, mx::array(0.1f)};
      check_against_cpu(rule, operands, large_step(scale), fake::gpu_stream, tolerance);
    };
    check(0.3f);
    for (size_t k = width - 2; k < operands.size(); k += width) { // what is unset would stay so
      operands[k] = evaluated(mx::nan_to_num(operands[k], 0.5f, {}, {}, mx::Device::cpu));
    }
    check(INFINITY);
  }
}

TEST_CASE("Lamb's gradients are scaled, and a step whose scale is not finite is skipped") {
  for (const float value : {0.3f, INFINITY, NAN}) {
    for (const bool skip_nonfinite : {false, true}) {
      if (std::isfinite(value) || skip_nonfinite) {
        check_lamb(
            operands_of_all_kinds(Rule::Lamb, mx::bfloat16),
            large_step(GradientScale{mx::array(value), skip_nonfinite}));
      }
    }
  }
}

TEST_CASE("elements of Lamb's scaled gradients are clipped") {
  const GradientScale scale{mx::array(0.3f), true, mx::array(0.1f)};
  check_lamb(operands_of_all_kinds(Rule::Lamb, mx::bfloat16), large_step(scale));
}

TEST_CASE("a parameter or a direction of zeros has no trust ratio") {
  auto operands = lamb_operands({{5000}, {5000}, {70}}, mx::float32);
  const auto zeros = [](int size) { return evaluated(mx::zeros({size}, mx::Device::cpu)); };
  operands[0] = zeros(5000);
  for (int k = 0; k < count; ++k) {
    operands[count + k] = zeros(5000);
  }
  check_lamb(operands);
}

TEST_CASE("a step of Lamb over tensors without elements") {
  check_lamb(lamb_operands({{0}, {3, 0}}, mx::float32));
}

TEST_CASE("Lamb overwrites all buffers that nobody else holds, applied or not") {
  for (const float scale : {0.3f, INFINITY}) {
    auto operands = operands_of_all_kinds(Rule::Lamb, mx::float32);
    const auto copies = copies_of(operands);
    std::vector<const void*> buffers;
    for (size_t i = 0; i < operands.size(); ++i) {
      if (i % count != fields) {
        buffers.push_back(operands[i].buffer().ptr());
      }
    }
    const Scalars scalars = large_step(GradientScale{mx::array(scale), true});
    const auto hypers = sample_hypers(Rule::Lamb);
    const auto got = run(Rule::Lamb, std::move(operands), hypers, scalars);
    REQUIRE(got.size() == buffers.size());
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK((got[i].size() == 0 || got[i].buffer().ptr() == buffers[i]));
    }
    const auto cpu = mx::default_stream(mx::Device::cpu);
    check_equal(got, run(Rule::Lamb, copies, hypers, scalars, cpu), tolerance);
    check_clean();
  }
}

TEST_CASE("where the parameter is held, Lamb writes the new one over the gradient") {
  for (const float scale : {0.3f, INFINITY}) {
    auto operands = ramped({{9000}});
    const auto copies = copies_of(operands);
    const mx::array held = operands[0];
    const void* gradient = operands[fields].buffer().ptr();
    const Scalars scalars = large_step(GradientScale{mx::array(scale), true});
    const auto hypers = sample_hypers(Rule::Lamb);
    const auto got = run(Rule::Lamb, std::move(operands), hypers, scalars);
    CHECK(got[0].buffer().ptr() == gradient);
    CHECK(mx::array_equal(held, copies[0]).item<bool>());
    const auto cpu = mx::default_stream(mx::Device::cpu);
    check_equal(got, run(Rule::Lamb, copies, hypers, scalars, cpu), tolerance);
    check_clean();
  }
}

TEST_CASE("Lamb of more tensors than a table holds") {
  int version = 0;
  cuDriverGetVersion(&version);
  const bool small = version < 12010;
  const auto operands = lamb_operands(std::vector<mx::Shape>(600, {5}), mx::float32);
  check_lamb(operands);
  run(Rule::Lamb, operands);
  // The scalars; 454 or 56 tensors in a table of the first pass, 1023 or 127 in one of the rates,
  // 584 or 72 in one of the second.
  const size_t expected = small ? 1 + 11 + 5 + 9 : 1 + 2 + 1 + 2;
  CHECK(fake::log().launches.size() == expected);
  check_clean();
}

TEST_CASE("tensors of all kinds share the launches of the rates and of the second pass") {
  auto operands = operands_of_all_kinds(Rule::Lamb, mx::float32);
  operands[3 * count + fields] = evaluated(mx::broadcast_to(mx::array(0.5f), {5, 6, 7}));
  run(Rule::Lamb, operands);
  // The scalars; flat, transposed and strided ones; the rates; the parameters, which are flat.
  REQUIRE(fake::log().launches.size() == 6);
  CHECK(fake::log().launches[4].blocks == 5);
  check_clean();
}

TEST_CASE("Lamb's sums are the same whenever its blocks run") {
  const auto operands = ramped({{70003}, {12293}});
  const auto once = run(Rule::Lamb, operands, sample_hypers(Rule::Lamb), large_step());
  for (int i = 0; i < 4; ++i) {
    const auto again = run(Rule::Lamb, operands, sample_hypers(Rule::Lamb), large_step());
    for (size_t k = 0; k < once.size(); ++k) {
      CHECK(mx::array_equal(again[k], once[k]).item<bool>());
    }
  }
  check_clean();
}

TEST_CASE("Lamb refuses more dimensions than the kernels have before anything is changed") {
  std::vector<int> axes(18);
  std::iota(axes.rbegin(), axes.rend(), 0);
  for (const int position : {0, fields}) {
    auto operands = lamb_operands({{5}, mx::Shape(18, 2)}, mx::float32);
    operands[count + position] =
        evaluated(mx::transpose(numbers(mx::Shape(18, 2), mx::float32, 1), axes));
    const auto before = copies_of(operands);
    CHECK_THROWS_WITH_AS(
        run(Rule::Lamb, operands), doctest::Contains("mx.contiguous"), std::runtime_error);
    fake::finish(fake::gpu_stream);
    CHECK(fake::log().launches.empty());
    CHECK(mx::array_equal(operands[0], before[0]).item<bool>());
  }
}
