// Functions that the tests with the fake of CUDA share.
#pragma once

#include <doctest/doctest.h>

#include "device.h"
#include "mlx/mlx.h"
#include "steps.h"

namespace mx = mlx::core;

inline void check_clean() {
  for (const auto& error : fake::log().errors) {
    FAIL_CHECK(error);
  }
  fake::log() = {};
}

/// The results of a step's graph, evaluated on its stream.
inline std::vector<mx::array> finished(std::vector<mx::array> results, mx::Stream stream) {
  if (stream.device == mx::Device::cpu) {
    mx::eval(results);
    return results;
  }
  results = steps::evaluate_on_gpu(
      std::move(results), [&](const mx::array& x) { fake::hold(x, stream); });
  fake::finish(stream);
  return results;
}

inline mx::array evaluated(mx::array x) {
  x.eval();
  return x;
}

inline std::vector<mx::array> run(
    mlx_opt::Rule rule,
    std::vector<mx::array> operands,
    const std::vector<mlx_opt::Scalar>& hypers,
    const steps::Scalars& scalars = {},
    mx::Stream stream = fake::gpu_stream) {
  const auto& [learning_rate, number, scale] = scalars;
  return finished(
      mlx_opt::step(rule, std::move(operands), hypers, learning_rate, number, stream, scale),
      stream);
}

inline std::vector<mx::array> run(mlx_opt::Rule rule, std::vector<mx::array> operands) {
  return run(rule, std::move(operands), steps::sample_hypers(rule));
}

inline void check_against_cpu(
    mlx_opt::Rule rule,
    const std::vector<mx::array>& operands,
    const steps::Scalars& scalars = {},
    mx::Stream stream = fake::gpu_stream,
    steps::Tolerance tolerance = {}) {
  CAPTURE(mlx_opt::info(rule).name);
  const auto hypers = steps::sample_hypers(rule);
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected = run(rule, steps::copies_of(operands), hypers, scalars, cpu);
  steps::check_equal(run(rule, operands, hypers, scalars, stream), expected, tolerance);
  check_clean();
}

/// A matrix of `shape` with contiguous columns.
inline mx::array transposed(mx::Shape shape, mx::Dtype dtype, int seed) {
  return evaluated(mx::transpose(steps::numbers({shape[1], shape[0]}, dtype, seed)));
}

/// Tensors that are flat, transposed and strided; no matrix fills its tiles.
inline std::vector<mx::array> operands_of_all_kinds(mlx_opt::Rule rule, mx::Dtype dtype) {
  auto operands = steps::operands_of(rule, {{7}, {64, 68}, {70, 65}, {5, 6, 7}, {}, {0, 3}}, dtype);
  const size_t count = mlx_opt::info(rule).slots + 2;
  operands[2 * count - 1] = transposed({64, 68}, dtype, 90);
  operands[3 * count - 1] = transposed({70, 65}, dtype, 91);
  operands[4 * count - 1] =
      evaluated(mx::transpose(steps::numbers({7, 5, 6}, dtype, 92), {1, 2, 0}));
  return operands;
}
