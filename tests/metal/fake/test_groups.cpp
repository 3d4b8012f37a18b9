// Steps whose tensors have groups with scalars of their own, including more than Metal has room
// for.
#include "mlx_opt/backend/find.h"
#include "mlx_opt/backend/metal/kernel_source.h"
#include "mlx_opt/backend/metal/uniforms.h"
#include "tensors.h"

using namespace mlx_opt;

namespace {

struct Group {
  std::vector<double> hypers;
  float learning_rate;
  bool traced = false;
  mx::array step = Scalars{}.step;
  float rate_scale = 1.0f;
};

std::vector<Scalar> scalars_of(const Group& group) {
  return {group.hypers.begin(), group.hypers.end()};
}

// The inputs of a step after its operands.
std::vector<mx::array> inputs_of(const std::vector<Group>& groups, std::optional<float> scale) {
  std::vector<mx::array> inputs;
  for (const Group& group : groups) {
    inputs.push_back(group.step);
    inputs.push_back(mx::array(group.learning_rate));
    for (size_t k = 0; group.traced && k < group.hypers.size(); ++k) {
      inputs.push_back(mx::array(static_cast<float>(group.hypers[k])));
    }
  }
  if (scale) {
    inputs.push_back(mx::array(*scale));
  }
  return inputs;
}

StepSpec spec_of(Rule rule, const std::vector<Group>& groups, std::vector<TensorRun> runs) {
  StepSpec spec{rule, std::move(runs), {}, {}, Scaling::none};
  for (const Group& group : groups) {
    std::vector<int> traced;
    for (size_t k = 0; group.traced && k < group.hypers.size(); ++k) {
      traced.push_back(static_cast<int>(k));
    }
    spec.sources.push_back({group.hypers, traced, true, true, group.rate_scale});
  }
  return spec;
}

// Runs the step, which overwrites all operands except the last of each tensor.
void run(
    const StepSpec& spec, std::vector<mx::array>& operands, const std::vector<mx::array>& scalars) {
  Buffers outputs;
  std::vector<mx::Dtype> dtypes;
  auto next = operands.begin();
  for (const auto& [tensors, width, masters, scales] : spec.runs) {
    for (size_t i = 0; i < tensors * width; ++i, ++next) {
      if (i % width != width - 1u) {
        outputs.push_back(next->buffer());
        dtypes.push_back(next->dtype());
      }
    }
  }
  std::vector<mx::array> inputs = operands;
  inputs.insert(inputs.end(), scalars.begin(), scalars.end());
  gpu::find_backend()
      .backend->prepare(spec, refs_to(inputs), dtypes, gpu_stream, LaunchMode::whole)
      ->enqueue(outputs, nullptr);
}

// Each tensor's operands without its gradient.
std::vector<mx::array> results_of(const std::vector<mx::array>& operands, size_t width) {
  std::vector<mx::array> results;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (i % width != width - 1) {
      results.push_back(operands[i]);
    }
  }
  return results;
}

// Each tensor's results on the CPU, from a step of its group alone.
std::vector<mx::array> expected_of(
    Rule rule,
    const std::vector<mx::array>& operands,
    const std::vector<Group>& groups,
    const std::vector<uint16_t>& of_tensors,
    std::optional<float> scale) {
  const size_t width = info(rule).slots + 2;
  std::vector<mx::array> expected;
  for (size_t t = 0; t < of_tensors.size(); ++t) {
    const Group& group = groups[of_tensors[t]];
    auto results = step(
        rule,
        copies_of({operands.begin() + t * width, operands.begin() + (t + 1) * width}),
        scalars_of(group),
        mx::array(group.rate_scale * group.learning_rate),
        group.step,
        mx::default_stream(mx::Device::cpu),
        scale ? std::optional(GradientScale{mx::array(*scale), false}) : std::nullopt);
    expected.insert(expected.end(), results.begin(), results.end());
  }
  mx::eval(expected);
  return expected;
}

void check_groups(
    Rule rule,
    const std::vector<Group>& groups,
    const std::vector<uint16_t>& of_tensors,
    std::vector<mx::array> operands,
    std::optional<float> scale = std::nullopt,
    Tolerance tolerance = {}) {
  mx::set_default_device(mx::Device::cpu);
  const int width = info(rule).slots + 2;
  const auto expected = expected_of(rule, operands, groups, of_tensors, scale);
  StepSpec spec = spec_of(rule, groups, {{of_tensors.size(), width}});
  spec.groups = of_tensors;
  spec.scaling = scale ? Scaling::always : Scaling::none;
  fake::begin();
  run(spec, operands, inputs_of(groups, scale));
  check_equal(results_of(operands, width), expected, tolerance);
  check_clean();
}

const std::vector<Group> three_groups = {
    {{0.9, 0.999, 1e-8, 0.1, 1.0}, 0.01f},
    {{0.8, 0.95, 1e-3, 0.0, 0.0}, 0.5f},
    {{0.5, 0.9, 1e-6, 0.3, 1.0}, 0.02f, true, mx::array(7, mx::uint64), 0.1f}};

} // namespace

TEST_CASE("tensors of a dispatch have groups of their own, at no dispatch more") {
  const std::vector<uint16_t> of_tensors = {2, 0, 1, 1, 0, 2, 0};
  const std::vector<mx::Shape> shapes = {{7}, {64, 65}, {3}, {4100}, {1}, {}, {33}};
  check_groups(
      Rule::AdamW, three_groups, of_tensors, operands_of(Rule::AdamW, shapes, mx::float32));
  CHECK(fake::log().dispatches.size() == 2);
  CHECK(fake::log().dispatches[1].kernel.find("flat7") != std::string::npos);
  CHECK(fake::log().barriers == 1);
}

TEST_CASE("as many tensors as GPT-2 has, in four groups, at no dispatch and no barrier more") {
  const std::vector<Group> four = {
      three_groups[0], three_groups[1], three_groups[2], {three_groups[0].hypers, 0.3f}};
  const auto check = [](const std::vector<Group>& groups) {
    std::vector<uint16_t> of_tensors;
    std::vector<mx::Shape> shapes;
    for (int i = 0; i < 148; ++i) {
      of_tensors.push_back(static_cast<uint16_t>(i % groups.size()));
      shapes.push_back(i % 3 ? mx::Shape{8, 9} : mx::Shape{5000});
    }
    auto operands = operands_of(Rule::AdamW, shapes, mx::float32);
    check_groups(Rule::AdamW, groups, of_tensors, std::move(operands));
    return std::pair(fake::log().dispatches.size(), fake::log().barriers);
  };
  CHECK(check(four) == check({four[0]}));
}

TEST_CASE("every way through memory takes the scalars of the tensor's group") {
  auto operands = operands_of(Rule::AdamW, {{40, 36}, {5, 6, 7}, {17, 4096}}, mx::float32);
  operands[3] = mx::transpose(numbers({36, 40}, mx::float32, 90));
  operands[7] = mx::transpose(numbers({7, 5, 6}, mx::float32, 91), {1, 2, 0});
  mx::eval(operands);
  check_groups(Rule::AdamW, three_groups, {2, 1, 1}, operands);
}

TEST_CASE("the gradients' scale is that of all groups") {
  const std::vector<mx::Shape> shapes = {{7}, {50}, {9, 8}};
  check_groups(
      Rule::AdamW, three_groups, {0, 1, 2}, operands_of(Rule::AdamW, shapes, mx::float32), 0.3f);
}

TEST_CASE("both passes and the rates take the scalars of the tensor's group") {
  const std::vector<Group> groups = {
      {{0.9, 0.999, 1e-6, 0.1}, 0.01f},
      {{0.8, 0.95, 1e-3, 0.0}, 0.5f},
      {{0.5, 0.9, 1e-6, 0.3}, 0.002f, true, mx::array(7, mx::uint64)}};
  const std::vector<mx::Shape> shapes = {
      {7}, {64, 65}, {40, 36}, {5, 6, 7}, {3}, {}, {17, 4096}, {33}};
  const std::vector<uint16_t> of_tensors = {2, 0, 1, 2, 1, 0, 1, 2};
  for (const auto scale : {std::optional<float>(), std::optional(0.3f)}) {
    auto operands = operands_of(Rule::Lamb, shapes, mx::float32);
    operands[11] = mx::transpose(numbers({36, 40}, mx::float32, 90));
    operands[15] = mx::transpose(numbers({7, 5, 6}, mx::float32, 91), {1, 2, 0});
    mx::eval(operands);
    check_groups(Rule::Lamb, groups, of_tensors, operands, scale, {.absolute = 5e-7});
    CHECK(fake::log().dispatches.size() == 1 + 3 * 4);
    CHECK(fake::log().barriers == 3);
  }
}

TEST_CASE("groups of more scalars than a kernel has slots for take a dispatch more for those") {
  std::vector<Group> groups;
  std::vector<uint16_t> of_tensors;
  std::vector<mx::Shape> shapes;
  const mx::array step = Scalars{}.step; // of all
  for (int group = 0; group < metal::scalar_slots + 1; ++group) {
    groups.push_back({{0.9, 0.99, 1e-6, 0.01 * group, 1.0}, 0.001f * (group + 1), false, step});
    of_tensors.push_back(group);
    shapes.push_back({4});
  }
  check_groups(Rule::AdamW, groups, of_tensors, operands_of(Rule::AdamW, shapes, mx::float32));
  const auto& dispatches = fake::log().dispatches;
  CHECK(std::count_if(dispatches.begin(), dispatches.end(), [](const auto& d) {
          return d.kernel.find("prepare") != std::string::npos;
        }) == 2);
}

TEST_CASE("Adafactor's tensors have groups of their own") {
  mx::set_default_device(mx::Device::cpu);
  const std::vector<Group> groups = {
      {{1e-30, 1e-3, 1.0, -0.8, 0.0, 0.1, 1.0, 1.0, 0.0}, 0.01f},
      {{1e-8, 1e-2, 0.1, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0}, 0.05f, true}};
  const std::vector<uint16_t> of_tensors = {1, 0, 1, 0};
  // Two of one dimension, of 3 operands, and two matrices, of 4.
  std::vector<mx::array> operands;
  for (const mx::Shape& shape : std::vector<mx::Shape>{
           {5000},
           {5000},
           {5000},
           {20},
           {20},
           {20},
           {70, 30},
           {70},
           {30},
           {70, 30},
           {9, 300},
           {9},
           {300},
           {9, 300}}) {
    operands.push_back(numbers(shape, mx::float32, static_cast<int>(operands.size())));
  }
  std::vector<mx::array> expected;
  auto next = operands.begin();
  for (size_t t = 0; t < of_tensors.size(); ++t) {
    const Group& group = groups[of_tensors[t]];
    const int width = t < 2 ? 3 : 4;
    const auto results = adafactor(
        copies_of({next, next + width}),
        t < 2,
        false,
        scalars_of(group),
        mx::array(group.rate_scale * group.learning_rate),
        group.step,
        mx::default_stream(mx::Device::cpu),
        std::nullopt);
    expected.insert(expected.end(), results.begin(), results.end());
    next += width;
  }
  mx::eval(expected);
  StepSpec spec = spec_of(Rule::Adafactor, groups, {{2, 3}, {2, 4}});
  spec.groups = of_tensors;
  fake::begin();
  run(spec, operands, inputs_of(groups, std::nullopt));
  const auto middle = operands.begin() + 6;
  auto results = results_of({operands.begin(), middle}, 3);
  const auto factored = results_of({middle, operands.end()}, 4);
  results.insert(results.end(), factored.begin(), factored.end());
  check_equal(results, expected, {.absolute = 2.4e-7});
  check_clean();
}

TEST_CASE("what Metal has no room for is refused") {
  metal::Operands operands;
  operands.in.resize(17);
  operands.out.resize(16);
  for (int8_t k = 0; k < 16; ++k) {
    operands.written.push_back(k);
  }
  CHECK(metal::max_per_pack(operands) == 1);
  operands.written.assign(16, metal::apart);
  CHECK_THROWS_WITH_AS(
      metal::max_per_pack(operands), doctest::Contains("has room for 29"), std::runtime_error);

  const std::vector<Group> groups = {{std::vector<double>(30, 0.5), 0.1f, true}};
  const auto scalars = inputs_of(groups, std::nullopt);
  auto& device = mx::metal::device(gpu_stream.device);
  const metal::UniformsShape shape{"Wide", 30, 1};
  CHECK_THROWS_WITH_AS(
      metal::GroupUniforms(shape, spec_of(Rule::SGD, groups, {}), refs_to(scalars).data(), device),
      doctest::Contains("30 hyperparameters and reads 32 scalars"),
      std::runtime_error);
}
