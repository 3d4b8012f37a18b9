// Stochastic rounding, with the fake of CUDA.
#include <cmath>

#include "checks.h"

using namespace mlx_opt;
using namespace steps;

TEST_CASE("a step that rounds stochastically") {
  const std::vector<std::optional<GradientScale>> scales = {
      std::nullopt, GradientScale{mx::array(0.3f)}, GradientScale{mx::array(INFINITY), true}};
  for (Rule rule : {Rule::AdamW, Rule::SGD}) {
    for (const auto& scale : scales) {
      const auto operands = operands_of_all_kinds(rule, mx::bfloat16);
      const auto cpu = mx::default_stream(mx::Device::cpu);
      const auto expected =
          finished(step_with_rounding(rule, copies_of(operands), cpu, scale), cpu);
      const auto results = step_with_rounding(rule, operands, fake::gpu_stream, scale);
      check_equal(finished(results, fake::gpu_stream), expected);
      check_clean();
    }
  }
}
