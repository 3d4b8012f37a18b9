// What the tests of steps behind the fake have in common.
#pragma once

#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "device.h"
#include "mlx/mlx.h"
#include "mlx_opt/ops.h"

using namespace mlx_opt;

inline const mx::Stream gpu_stream(0, mx::Device::gpu);

inline mx::array normal(mx::Shape shape, mx::Dtype dtype, int seed) {
  auto x =
      mx::random::normal(std::move(shape), mx::float32, mx::random::key(seed), mx::Device::cpu);
  return mx::astype(mx::abs(x, mx::Device::cpu), dtype, mx::Device::cpu);
}

inline std::vector<mx::array> copies_of(const std::vector<mx::array>& arrays) {
  std::vector<mx::array> copies;
  for (const auto& x : arrays) {
    copies.push_back(mx::contiguous(x + mx::array(0, x.dtype()), false, mx::Device::cpu));
  }
  mx::eval(copies);
  return copies;
}

struct Scalars {
  mx::array learning_rate = mx::array(0.01f);
  mx::array step = mx::array(3, mx::uint64);
  std::optional<GradientScale> scale = std::nullopt;
};

// Does what MLX does on a GPU: evaluates the graph of a step, whose results these are.
inline void evaluate(std::vector<mx::array>& results) {
  std::vector<mx::array> token{results[0].inputs()[0]};
  token[0].primitive().eval_gpu(token[0].inputs(), token);
  for (auto& result : results) {
    std::vector<mx::array> outputs{result};
    result.primitive().eval_gpu(result.inputs(), outputs);
    result.set_status(mx::array::Status::available);
    result.detach();
  }
}

// The two differ at most by the rounding of the last place of what is stored, or by `least`.
inline void check_equal(
    const std::vector<mx::array>& got,
    const std::vector<mx::array>& expected,
    double least = 1e-7) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i].dtype() == expected[i].dtype());
    CHECK(got[i].shape() == expected[i].shape());
    const auto wide = [](const mx::array& x) { return mx::astype(x, mx::float32); };
    const double place = got[i].dtype() == mx::float32   ? 1e-6
                         : got[i].dtype() == mx::float16 ? 1e-3
                                                         : 8e-3;
    CHECK(mx::allclose(wide(got[i]), wide(expected[i]), place, least).item<bool>());
  }
}

inline void check_clean() {
  for (const auto& error : fake::log().errors) {
    FAIL_CHECK(error);
  }
  for (const auto& kernel : fake::log().hazards) {
    FAIL_CHECK("hazard: " << kernel);
  }
}
