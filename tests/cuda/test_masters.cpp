// Master weights, with the fake of CUDA.
#include <cmath>

#include "checks.h"

using namespace mlx_opt;
using namespace steps;

namespace {

const std::vector<mx::Shape> shapes = {{7}, {64, 68}, {5, 6, 7}, {}, {0, 3}};

void check_masters(
    Rule rule,
    MasterWeights masters,
    std::vector<mx::array> operands,
    const std::optional<GradientScale>& scale = {}) {
  const size_t count = info(rule).slots + 3;
  const mx::Dtype dtype = operands[0].dtype();
  operands[2 * count - 1] = transposed({64, 68}, dtype, 90);
  operands[3 * count - 1] = evaluated(mx::transpose(numbers({7, 5, 6}, dtype, 92), {1, 2, 0}));
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected =
      finished(step_with_masters(rule, masters, copies_of(operands), cpu, scale), cpu);
  const auto results =
      step_with_masters(rule, masters, std::move(operands), fake::gpu_stream, scale);
  check_equal(without_nan(finished(results, fake::gpu_stream)), without_nan(expected));
  check_clean();
}

} // namespace

TEST_CASE("a step of master weights") {
  constexpr auto float32 = MasterWeights::float32;
  check_masters(Rule::AdamW, float32, operands_with_masters(Rule::AdamW, shapes, mx::bfloat16));
  check_masters(Rule::SGD, float32, operands_with_masters(Rule::SGD, shapes, mx::float16));
}

TEST_CASE("a step of master weights in bfloat16 and a remainder") {
  const auto operands = operands_with_remainders(Rule::Lion, shapes);
  check_masters(Rule::Lion, MasterWeights::remainder, operands);
}

TEST_CASE("a step of master weights that is scaled or skipped") {
  for (const float value : {0.3f, INFINITY}) {
    const GradientScale scale{mx::array(value), true};
    const auto masters = operands_with_masters(Rule::Lion, shapes, mx::bfloat16);
    check_masters(Rule::Lion, MasterWeights::float32, masters, scale);
    const auto remainders = operands_with_remainders(Rule::Lion, shapes);
    check_masters(Rule::Lion, MasterWeights::remainder, remainders, scale);
  }
}
