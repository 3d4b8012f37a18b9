// Averages of the weights, with the fake of CUDA.
#include <cmath>

#include "checks.h"

using namespace mlx_opt;
using namespace steps;

namespace {

const std::vector<mx::Shape> shapes = {{7}, {64, 68}, {5, 6, 7}, {}, {0, 3}};

void check_averages(
    Rule rule,
    MasterWeights masters,
    const std::vector<mx::array>& without,
    const std::optional<GradientScale>& scale = {}) {
  auto operands = with_averages(without, shapes.size());
  const size_t count = operands.size() / shapes.size();
  const mx::Dtype dtype = operands[0].dtype();
  operands[2 * count - 1] = transposed({64, 68}, dtype, 90);
  operands[3 * count - 1] = evaluated(mx::transpose(numbers({7, 5, 6}, dtype, 92), {1, 2, 0}));
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected =
      finished(step_with_ema(rule, masters, copies_of(operands), cpu, scale), cpu);
  const auto results = step_with_ema(rule, masters, std::move(operands), fake::gpu_stream, scale);
  check_equal(without_nan(finished(results, fake::gpu_stream)), without_nan(expected));
  check_clean();
}

} // namespace

TEST_CASE("a step with averages of the weights") {
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16, mx::float16}) {
    check_averages(Rule::AdamW, MasterWeights::none, operands_of(Rule::AdamW, shapes, dtype));
  }
  check_averages(Rule::SGD, MasterWeights::none, operands_of(Rule::SGD, shapes, mx::bfloat16));
}

TEST_CASE("a step with averages of master weights") {
  constexpr auto float32 = MasterWeights::float32;
  const auto masters = operands_with_masters(Rule::AdamW, shapes, mx::bfloat16);
  check_averages(Rule::AdamW, float32, masters);
  const auto remainders = operands_with_remainders(Rule::Lion, shapes);
  check_averages(Rule::Lion, MasterWeights::remainder, remainders);
}

TEST_CASE("a step with averages that is scaled or skipped") {
  for (const float value : {0.3f, INFINITY}) {
    const GradientScale scale{mx::array(value), true};
    const auto operands = operands_of(Rule::Lion, shapes, mx::bfloat16);
    check_averages(Rule::Lion, MasterWeights::none, operands, scale);
  }
}
