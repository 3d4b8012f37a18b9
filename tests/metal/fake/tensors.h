// Numbers and tensors for the tests with the fake of Metal.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

#include "device.h"
#include "mlx/mlx.h"
#include "steps.h"

namespace mx = mlx::core;
using namespace steps;

inline const mx::Stream gpu_stream(0, mx::Device::gpu);

inline void check_clean() {
  for (const auto& error : fake::log().errors) {
    FAIL_CHECK(error);
  }
  for (const auto& kernel : fake::log().hazards) {
    FAIL_CHECK("hazard: " << kernel);
  }
}

// Only the graph holds `operands`.
inline std::vector<mx::array> run(
    mlx_opt::Rule rule,
    std::vector<mx::array> operands,
    const std::vector<mlx_opt::Scalar>& hypers,
    const Scalars& scalars) {
  return evaluate_on_gpu(mlx_opt::step(
      rule,
      std::move(operands),
      hypers,
      scalars.learning_rate,
      scalars.step,
      gpu_stream,
      scalars.scale));
}

inline std::vector<mx::array> run(mlx_opt::Rule rule, std::vector<mx::array> operands) {
  return run(rule, std::move(operands), sample_hypers(rule), Scalars{});
}

inline std::vector<mx::array> run_on_cpu(
    mlx_opt::Rule rule,
    std::vector<mx::array> operands,
    const std::vector<mlx_opt::Scalar>& hypers,
    const Scalars& scalars = {}) {
  auto results = mlx_opt::step(
      rule,
      std::move(operands),
      hypers,
      scalars.learning_rate,
      scalars.step,
      mx::default_stream(mx::Device::cpu),
      scalars.scale);
  mx::eval(results);
  return results;
}

inline void check_against_cpu(mlx_opt::Rule rule, const std::vector<mx::array>& operands) {
  CAPTURE(mlx_opt::info(rule).name);
  fake::begin();
  const auto expected = run_on_cpu(rule, copies_of(operands), sample_hypers(rule));
  const auto got = run(rule, operands);
  check_equal(got, expected);
  check_clean();
}

inline const std::string& last_kernel() {
  return fake::log().dispatches.back().kernel;
}

inline bool ends_with(std::string_view text, std::string_view end) {
  return text.ends_with(end);
}

inline std::vector<mx::Shape> gpt2_shapes() {
  std::vector<mx::Shape> shapes{{50257, 768}, {1024, 768}};
  for (int layer = 0; layer < 12; ++layer) {
    const std::vector<mx::Shape> own{
        {768},
        {768},
        {768, 2304},
        {2304},
        {768, 768},
        {768},
        {768},
        {768},
        {768, 3072},
        {3072},
        {3072, 768},
        {768}};
    shapes.insert(shapes.end(), own.begin(), own.end());
  }
  shapes.push_back({768});
  shapes.push_back({768});
  return shapes;
}
