// Master weights, with the fake of CUDA.
#include "checks.h"

using namespace mlx_opt;
using namespace steps;

namespace {

void check_masters(Rule rule, mx::Dtype dtype, const std::optional<GradientScale>& scale = {}) {
  auto operands = operands_with_masters(rule, {{7}, {64, 68}, {5, 6, 7}, {}, {0, 3}}, dtype);
  const size_t count = info(rule).slots + 3;
  operands[2 * count - 1] = transposed({64, 68}, dtype, 90);
  operands[3 * count - 1] = evaluated(mx::transpose(numbers({7, 5, 6}, dtype, 92), {1, 2, 0}));
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected = finished(step_with_masters(rule, copies_of(operands), cpu, scale), cpu);
  const auto on_gpu = step_with_masters(rule, std::move(operands), fake::gpu_stream, scale);
  check_equal(finished(on_gpu, fake::gpu_stream), expected);
  check_clean();
}

} // namespace

TEST_CASE("a step of master weights") {
  check_masters(Rule::AdamW, mx::bfloat16);
  check_masters(Rule::SGD, mx::float16);
}

TEST_CASE("a step of master weights that is scaled or skipped") {
  for (const float scale : {0.3f, INFINITY}) {
    check_masters(Rule::Lion, mx::bfloat16, GradientScale{mx::array(scale), true});
  }
}
