// What tests behind the fake of Metal compute with.
#pragma once

#include <doctest/doctest.h>

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
