// What the tests behind the fake of CUDA share.
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

/// The results of a step's graph, on the stream that it is made for.
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
