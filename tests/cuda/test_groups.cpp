// Steps of several groups of hyperparameters, with the fake of CUDA: each tensor must equal the
// result of a step of its own with its group's hyperparameters.
#include <cmath>

#include "checks.h"
#include "mlx_opt/backend/find.h"

using namespace mlx_opt;
using namespace steps;

namespace {

struct Group {
  std::vector<double> hypers;
  float learning_rate;
  std::vector<int> traced = {}; // positions of those that are arrays
  float rate_scale = 1.0f;
};

// The scalars after the operands.
std::vector<mx::array> scalars_of(
    const std::vector<Group>& groups, const std::optional<GradientScale>& scale) {
  std::vector<mx::array> scalars;
  for (const Group& group : groups) {
    scalars.push_back(mx::array(3, mx::uint64));
    scalars.push_back(mx::array(group.learning_rate));
    for (int position : group.traced) {
      scalars.push_back(mx::array(static_cast<float>(group.hypers[position])));
    }
  }
  if (scale) {
    scalars.push_back(scale->value);
  }
  return scalars;
}

StepSpec spec_of(
    Rule rule,
    std::vector<TensorRun> runs,
    std::vector<uint16_t> group_of,
    const std::vector<Group>& groups,
    const std::optional<GradientScale>& scale) {
  StepSpec spec{rule, std::move(runs), std::move(group_of), {}};
  for (const Group& group : groups) {
    spec.sources.push_back({group.hypers, group.traced, true, true, group.rate_scale});
    for (int position : group.traced) {
      spec.sources.back().hypers[position] = NAN; // not to be read
    }
  }
  spec.scaling = !scale                  ? Scaling::none
                 : scale->skip_nonfinite ? Scaling::if_finite
                                         : Scaling::always;
  return spec;
}

// Overwrites all operands except the gradients, the last of each tensor.
std::vector<mx::array> overwrite(
    const StepSpec& spec, std::vector<mx::array> operands, const std::vector<mx::array>& scalars) {
  std::vector<mx::array> results;
  std::vector<mx::Dtype> dtypes;
  Buffers buffers;
  size_t next = 0;
  for (const TensorRun& run : spec.runs) {
    for (size_t i = 0; i < run.tensors * run.operands; ++i, ++next) {
      if (i % run.operands != static_cast<size_t>(run.operands - 1)) {
        results.push_back(operands[next]);
        dtypes.push_back(operands[next].dtype());
        buffers.push_back(operands[next].buffer());
      }
    }
  }
  operands.insert(operands.end(), scalars.begin(), scalars.end());
  gpu::find_backend()
      .backend->prepare(spec, refs_to(operands), dtypes, fake::gpu_stream, LaunchMode::whole)
      ->enqueue(buffers, nullptr);
  fake::finish(fake::gpu_stream);
  return results;
}

std::vector<Scalar> sample_hypers(const Group& group) {
  std::vector<Scalar> hypers(group.hypers.begin(), group.hypers.end());
  for (int position : group.traced) {
    hypers[position] = evaluated(mx::array(static_cast<float>(group.hypers[position])));
  }
  return hypers;
}

mx::Stream cpu() {
  return mx::default_stream(mx::Device::cpu);
}

// Tensors of all layouts, in alternating groups.
void check_update(
    Rule rule,
    const std::vector<Group>& groups,
    size_t tensors = 10,
    const std::optional<GradientScale>& scale = std::nullopt) {
  const size_t count = info(rule).slots + 2;
  const std::vector<mx::Shape> shapes = {{7}, {64, 68}, {5000}, {5, 6, 7}, {0, 3}};
  std::vector<mx::Shape> all;
  std::vector<uint16_t> group_of;
  for (size_t i = 0; i < tensors; ++i) {
    all.push_back(shapes[i % shapes.size()]);
    group_of.push_back(static_cast<uint16_t>(i % groups.size()));
  }
  auto operands = operands_of(rule, all, mx::float32);
  for (size_t i = 0; i < tensors; ++i) {
    auto& gradient = operands[(i + 1) * count - 1];
    const int seed = static_cast<int>(i);
    if (i % shapes.size() == 1) {
      gradient = evaluated(mx::transpose(numbers({68, 64}, mx::float32, seed)));
    } else if (i % shapes.size() == 3) {
      gradient = evaluated(mx::transpose(numbers({7, 5, 6}, mx::float32, seed), {1, 2, 0}));
    }
  }
  std::vector<mx::array> expected;
  for (size_t i = 0; i < tensors; ++i) {
    const Group& group = groups[group_of[i]];
    const auto own = copies_of({operands.begin() + i * count, operands.begin() + (i + 1) * count});
    const auto results = finished(
        step(
            rule,
            own,
            sample_hypers(group),
            mx::array(group.rate_scale * group.learning_rate),
            mx::array(3, mx::uint64),
            cpu(),
            scale),
        cpu());
    expected.insert(expected.end(), results.begin(), results.end());
  }
  const auto spec = spec_of(rule, {{tensors, static_cast<int>(count)}}, group_of, groups, scale);
  check_equal(overwrite(spec, operands, scalars_of(groups, scale)), expected);
}

const std::vector<Group> two = {
    {{0.9, 0.999, 1e-8, 0.1, 1.0}, 0.01f}, {{0.5, 0.9, 1e-3, 0.0, 0.0}, 0.2f, {}, 0.3f}};

} // namespace

TEST_CASE("two groups of one rule, at no launch more") {
  check_update(Rule::AdamW, {two[0]});
  const size_t launches = fake::log().launches.size();
  check_clean();
  check_update(Rule::AdamW, two);
  CHECK(fake::log().launches.size() == launches);
  CHECK(fake::log().launches[0].blocks == 2);
  check_clean();
}

TEST_CASE("as many tensors as GPT-2 has, in four groups, at no launch more") {
  check_update(Rule::AdamW, {two[0]}, 148);
  const size_t launches = fake::log().launches.size();
  check_clean();
  check_update(Rule::AdamW, {two[0], two[1], {two[0].hypers, 0.3f}, {two[1].hypers, 0.1f}}, 148);
  CHECK(fake::log().launches.size() == launches);
  check_clean();
}

TEST_CASE("groups with traced hyperparameters, each with its own") {
  check_update(
      Rule::AdamW,
      {{two[0].hypers, 0.01f, {3, 0}}, {two[1].hypers, 0.2f}, {two[1].hypers, 0.3f, {1}}});
  check_clean();
}

TEST_CASE("the scale of the gradients is that of all groups") {
  for (const float value : {0.3f, INFINITY}) {
    check_update(Rule::AdamW, two, 10, GradientScale{mx::array(value), true});
    check_clean();
  }
}

TEST_CASE("more groups than a launch makes the scalars of") {
  std::vector<Group> groups;
  for (int i = 0; i < 70; ++i) {
    groups.push_back({{0.9 - 0.01 * i, 0.99, 1e-8, 0.001 * i, 1.0}, 0.001f * i, {}});
    groups.back().traced.assign(i % 3, 0);
    for (int k = 0; k < i % 3; ++k) {
      groups.back().traced[k] = k;
    }
  }
  check_update(Rule::AdamW, groups, 75);
  const auto& launches = fake::log().launches;
  // 30 groups of five hyperparameters take 4 KB.
  CHECK(launches[0].blocks == 28);
  CHECK(launches[1].blocks == 28);
  CHECK(launches[2].blocks == 14);
  check_clean();
}

TEST_CASE("groups of a rule of two passes") {
  const std::vector<Group> groups = {
      {{0.9, 0.999, 1e-6, 0.1}, 0.05f},
      {{0.5, 0.9, 1e-3, 0.0}, 0.02f, {0}},
      {{0.8, 0.9, 1e-3, 1.0}, 0.01f}};
  check_update(Rule::Lamb, groups);
  check_clean();
  for (const float value : {0.3f, INFINITY}) {
    check_update(Rule::Lamb, groups, 10, GradientScale{mx::array(value), true});
    check_clean();
  }
}

TEST_CASE("groups of Adafactor") {
  const std::vector<Group> groups = {
      {{1e-30, 1e-3, 0.9, -0.8, 0.9, 0.1, 1.0, 0.0, 0.0}, 0.01f},
      {{1e-30, 1e-2, 1.5, -0.5, 0.5, 0.0, 0.0, 0.0, 0.0}, 0.1f, {4}}};
  const std::vector<mx::Shape> shapes = {{7}, {300}, {4100}, {6, 8}, {130, 140}, {2, 33, 40}};
  const std::vector<uint16_t> group_of = {1, 0, 1, 0, 1, 0};
  std::vector<mx::array> operands;
  std::vector<mx::array> expected;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const bool factored = i >= 3;
    std::vector<mx::array> own = {numbers(shapes[i], mx::float32, 1)};
    for (int k = 0; k <= factored; ++k) {
      own.push_back(numbers(state_shape(shapes[i], factored, k), mx::float32, 2 + k));
    }
    own.push_back(numbers(shapes[i], mx::float32, 4));
    own.push_back(
        i == 4 ? evaluated(mx::transpose(numbers({140, 130}, mx::float32, 5)))
               : numbers(shapes[i], mx::float32, 5));
    const Group& group = groups[group_of[i]];
    const auto results = finished(
        adafactor(
            copies_of(own),
            !factored,
            true,
            sample_hypers(group),
            mx::array(group.rate_scale * group.learning_rate),
            mx::array(3, mx::uint64),
            cpu()),
        cpu());
    expected.insert(expected.end(), results.begin(), results.end());
    operands.insert(operands.end(), own.begin(), own.end());
  }
  const auto spec = spec_of(Rule::Adafactor, {{3, 4}, {3, 5}}, group_of, groups, std::nullopt);
  check_equal(
      overwrite(spec, operands, scalars_of(groups, std::nullopt)), expected, {.relative = 1e-5});
  check_clean();
}

TEST_CASE("groups that do not fit are an error, and nothing is changed") {
  const auto operands = operands_of(Rule::SGD, {{5}, {6}}, mx::float32);
  const auto before = copies_of(operands);
  const std::vector<Group> groups = {{{0.1, 0.0, 0.0, 0.0}, 0.01f}, {{0.2, 0.0, 0.0, 0.0}, 0.02f}};
  const auto scalars = scalars_of(groups, std::nullopt);
  const auto check_refused = [&](auto change) {
    auto spec = spec_of(Rule::SGD, {{2, 2}}, {0, 1}, groups, std::nullopt);
    change(spec);
    CHECK_THROWS_WITH_AS(
        overwrite(spec, operands, scalars), doctest::Contains("groups"), std::logic_error);
  };
  check_refused([](StepSpec& spec) { spec.groups = {0, 2}; });
  check_refused([](StepSpec& spec) { spec.groups = {0}; });
  check_refused([](StepSpec& spec) { spec.sources.clear(); });
  check_refused([](StepSpec& spec) { spec.sources[1].hypers.push_back(0.3); });
  fake::finish(fake::gpu_stream);
  CHECK(fake::log().launches.empty());
  check_equal(operands, before);
}

TEST_CASE("more operands than the kernels take are an error that says so") {
  const std::vector<mx::array> operands(25, numbers({5}, mx::float32, 1));
  const auto spec =
      spec_of(Rule::SGD, {{1, 25}}, {}, {{{0.1, 0.0, 0.0, 0.0}, 0.01f}}, std::nullopt);
  CHECK_THROWS_WITH_AS(
      overwrite(spec, operands, scalars_of({{{0.1, 0.0, 0.0, 0.0}, 0.01f}}, std::nullopt)),
      doctest::Contains("25 operands"),
      std::runtime_error);
  CHECK(fake::log().launches.empty());
}
