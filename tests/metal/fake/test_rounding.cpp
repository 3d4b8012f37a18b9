// Stochastic rounding, from the primitive's eval_gpu to the encoder, against a fake of Metal.
#include <cmath>

#include "tensors.h"

using namespace mlx_opt;

TEST_CASE("a step that rounds stochastically") {
  const std::vector<std::optional<GradientScale>> scales = {
      std::nullopt, GradientScale{mx::array(0.3f)}, GradientScale{mx::array(INFINITY), true}};
  for (Rule rule : {Rule::AdamW, Rule::SGD}) {
    for (const auto& scale : scales) {
      fake::begin();
      mx::set_default_device(mx::Device::cpu);
      auto operands = operands_of(rule, {{7}, {64, 65}, {5, 6, 7}, {}, {0, 3}}, mx::bfloat16);
      const size_t count = info(rule).slots + 2;
      operands[2 * count - 1] = mx::transpose(numbers({65, 64}, mx::bfloat16, 90));
      operands[3 * count - 1] = mx::transpose(numbers({7, 5, 6}, mx::bfloat16, 91), {1, 2, 0});
      mx::eval(operands);
      const auto cpu = mx::default_stream(mx::Device::cpu);
      const auto expected = step_with_rounding(rule, copies_of(operands), cpu, scale);
      const auto results = step_with_rounding(rule, std::move(operands), gpu_stream, scale);
      check_equal(evaluate_on_gpu(results), expected);
      check_clean();
    }
  }
}
