// What tests behind the fake of Metal compute with.
#pragma once

#include <doctest/doctest.h>

#include "device.h"
#include "mlx/mlx.h"

namespace mx = mlx::core;

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
