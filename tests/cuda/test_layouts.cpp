// Tensors of random shapes and layouts, with the fake of CUDA.
#include <algorithm>
#include <functional>
#include <random>

#include "checks.h"

using namespace mlx_opt;
using namespace steps;

namespace {

constexpr unsigned steps_of_each = 10;

// Seeded, so that a failure can be reproduced.
class Any {
 public:
  explicit Any(unsigned seed) : random_(seed) {}

  int below(int count) {
    return static_cast<int>(random_() >> 8) % count;
  }

  mx::Shape shape(int least_dims) {
    mx::Shape shape(least_dims + below(4 - least_dims));
    for (auto& size : shape) {
      const int max_size[] = {2, 9, 40, 300};
      size = 1 + below(max_size[below(shape.size() > 2 ? 3 : 4)]);
    }
    return shape;
  }

  // Half of them row-contiguous.
  mx::array laid_out(const mx::Shape& shape, mx::Dtype dtype) {
    const int seed = below(1000);
    const int last = static_cast<int>(shape.size()) - 1;
    const int kind = last < 0 ? 0 : below(8);
    mx::Shape start(shape.size(), 0), steps(shape.size(), 1), larger = shape;
    switch (kind) {
      case 1: // transposed or permuted
        std::reverse(larger.begin(), larger.end());
        return evaluated(mx::transpose(numbers(larger, dtype, seed)));
      case 2: // rows apart, and not aligned
        start[last] = 1;
        larger[last] += 1;
        return evaluated(mx::slice(numbers(larger, dtype, seed), start, larger));
      case 3: // columns apart
        larger[last] *= 2;
        steps[last] = 2;
        return evaluated(mx::slice(numbers(larger, dtype, seed), start, larger, steps));
      case 4:
        larger[0] = 1;
        return evaluated(mx::broadcast_to(numbers(larger, dtype, seed), shape));
      default:
        return numbers(shape, dtype, seed);
    }
  }

  mx::Dtype dtype() {
    return below(2) ? mx::float32 : mx::bfloat16;
  }

 private:
  std::minstd_rand random_;
};

void check_on_both(
    const std::vector<mx::array>& operands,
    const std::function<std::vector<mx::array>(std::vector<mx::array>, mx::Stream)>& step,
    double error) {
  const auto expected = step(copies_of(operands), mx::default_stream(mx::Device::cpu));
  check_equal(
      finished(step(operands, fake::gpu_stream), fake::gpu_stream),
      finished(expected, mx::default_stream(mx::Device::cpu)),
      {.relative = error});
  check_clean();
}

void check_any_layouts(Rule rule) {
  for (unsigned seed = 1; seed <= steps_of_each; ++seed) {
    CAPTURE(seed);
    Any any(seed);
    std::vector<mx::array> operands;
    const int count = info(rule).slots + 2;
    const mx::Dtype dtype = any.dtype();
    for (int t = 0; t < 8; ++t) {
      const auto shape = any.shape(0);
      const bool flat = any.below(2);
      for (int k = 0; k < count; ++k) {
        operands.push_back(
            flat && k < count - 1 ? numbers(shape, dtype, count * t + k)
                                  : any.laid_out(shape, dtype));
      }
    }
    check_on_both(
        operands,
        [&](std::vector<mx::array> x, mx::Stream stream) {
          return step(
              rule,
              std::move(x),
              sample_hypers(rule),
              mx::array(0.01f),
              mx::array(3, mx::uint64),
              stream);
        },
        1e-6);
  }
}

} // namespace

TEST_CASE("elementwise steps of tensors as they come") {
  check_any_layouts(Rule::AdamW);
}

TEST_CASE("steps of two passes of tensors as they come") {
  check_any_layouts(Rule::Lamb);
}

TEST_CASE("Adafactor of tensors as they come") {
  for (unsigned seed = 1; seed <= steps_of_each; ++seed) {
    CAPTURE(seed);
    Any any(seed);
    std::vector<mx::array> operands;
    const mx::Dtype dtype = any.dtype();
    for (int t = 0; t < 8; ++t) {
      const bool factored = t >= 3;
      const auto shape = any.shape(factored ? 2 : 0);
      const bool flat = any.below(2);
      const auto add = [&](const mx::Shape& of) {
        operands.push_back(
            flat ? numbers(of, dtype, static_cast<int>(operands.size())) : any.laid_out(of, dtype));
      };
      add(shape);
      for (int k = 0; k <= factored; ++k) {
        add(state_shape(shape, factored, k));
      }
      add(shape);
      operands.push_back(any.laid_out(shape, dtype));
    }
    check_on_both(
        operands,
        [](std::vector<mx::array> x, mx::Stream stream) {
          return adafactor(
              std::move(x),
              3,
              true,
              {1e-30, 1e-3, 0.9, -0.8, 0.9, 0.1, 1.0, 0.0, 0.0},
              mx::array(0.01f),
              mx::array(3, mx::uint64),
              stream);
        },
        1e-5);
  }
}
