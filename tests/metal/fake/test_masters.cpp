// Master weights, from the primitive's eval_gpu to the encoder, against a fake of Metal.
#include <cmath>

#include "tensors.h"

using namespace mlx_opt;

namespace {

void check_masters(Rule rule, mx::Dtype dtype, const std::optional<GradientScale>& scale = {}) {
  fake::begin();
  auto operands = operands_with_masters(rule, {{7}, {64, 65}, {5, 6, 7}, {}, {0, 3}}, dtype);
  const size_t count = info(rule).slots + 3;
  operands[2 * count - 1] = mx::transpose(numbers({65, 64}, dtype, 90));
  operands[3 * count - 1] = mx::transpose(numbers({7, 5, 6}, dtype, 91), {1, 2, 0});
  mx::eval(operands);
  const auto cpu = mx::default_stream(mx::Device::cpu);
  auto expected = step_with_masters(rule, copies_of(operands), cpu, scale);
  mx::eval(expected);
  check_equal(
      evaluate_on_gpu(step_with_masters(rule, std::move(operands), gpu_stream, scale)), expected);
  check_clean();
}

} // namespace

TEST_CASE("a step of master weights") {
  mx::set_default_device(mx::Device::cpu);
  check_masters(Rule::AdamW, mx::bfloat16);
  check_masters(Rule::SGD, mx::float16);
}

TEST_CASE("a step of master weights that is scaled or skipped") {
  mx::set_default_device(mx::Device::cpu);
  for (const float scale : {0.3f, INFINITY}) {
    check_masters(Rule::Lion, mx::bfloat16, GradientScale{mx::array(scale), true});
  }
}
