// Master weights, from the primitive's eval_gpu to the encoder, against a fake of Metal.
#include <cmath>

#include "tensors.h"

using namespace mlx_opt;

namespace {

const std::vector<mx::Shape> shapes = {{7}, {64, 65}, {5, 6, 7}, {}, {0, 3}};

void check_masters(
    Rule rule,
    MasterWeights masters,
    std::vector<mx::array> operands,
    const std::optional<GradientScale>& scale = {}) {
  fake::begin();
  mx::set_default_device(mx::Device::cpu);
  const size_t count = info(rule).slots + 3;
  const mx::Dtype dtype = operands[0].dtype();
  operands[2 * count - 1] = mx::transpose(numbers({65, 64}, dtype, 90));
  operands[3 * count - 1] = mx::transpose(numbers({7, 5, 6}, dtype, 91), {1, 2, 0});
  mx::eval(operands);
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected = step_with_masters(rule, masters, copies_of(operands), cpu, scale);
  const auto results = step_with_masters(rule, masters, std::move(operands), gpu_stream, scale);
  check_equal(without_nan(evaluate_on_gpu(results)), without_nan(expected));
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
