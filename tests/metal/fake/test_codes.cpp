// States in codes of 8 bits, from the primitive's eval_gpu to the encoder, against a fake of Metal.
#include <cmath>

#include "tensors.h"

using namespace mlx_opt;

namespace {

const std::vector<mx::Shape> shapes = {{64, 65}, {4097}, {5, 30, 40}, {128, 64}};

void check_codes(Rule rule, const std::optional<GradientScale>& scale = {}) {
  fake::begin();
  mx::set_default_device(mx::Device::cpu);
  auto operands = operands_with_codes(rule, shapes);
  const size_t count = operands.size() / shapes.size();
  operands[count - 1] = mx::transpose(numbers({65, 64}, mx::float32, 90));
  operands[3 * count - 1] = mx::transpose(numbers({40, 5, 30}, mx::float32, 91), {1, 2, 0});
  mx::eval(operands);
  const auto cpu = mx::default_stream(mx::Device::cpu);
  auto expected = step_with_codes(rule, copies_of(operands), cpu, scale);
  mx::eval(expected);
  const auto got = evaluate_on_gpu(step_with_codes(rule, std::move(operands), gpu_stream, scale));
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i].dtype() == expected[i].dtype());
    CHECK(mx::array_equal(got[i], expected[i]).item<bool>());
  }
  check_clean();
}

} // namespace

TEST_CASE("a step of slots of codes") {
  check_codes(Rule::AdamW);
  check_codes(Rule::Lion);
}

TEST_CASE("a step of slots of codes that is scaled or skipped") {
  for (const float value : {0.3f, INFINITY}) {
    check_codes(Rule::Lion, GradientScale{mx::array(value), true});
  }
}
