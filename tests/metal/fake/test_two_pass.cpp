// The host code of rules of two passes, from the primitive's eval_gpu to the encoder, against a
// fake of Metal.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "mlx/backend/metal/device.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/backend/metal/tables.h"
#include "tensors.h"

using namespace mlx_opt;

namespace {

constexpr int width = 4; // of a tensor: the parameter, two slots and the gradient

// Each pass's dispatches after that of the uniforms, in order.
std::vector<std::string> kernels() {
  std::vector<std::string> names;
  for (const auto& dispatch : fake::log().dispatches) {
    names.push_back(dispatch.kernel.substr(
        dispatch.kernel.find_first_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))); // of the rule
  }
  return names;
}

size_t count(std::string_view part) {
  const auto names = kernels();
  return std::count_if(names.begin(), names.end(), [&](const std::string& name) {
    return name.find(part) != std::string::npos;
  });
}

std::vector<mx::array> gradients_of(const std::vector<mx::array>& operands) {
  std::vector<mx::array> gradients;
  for (size_t i = width - 1; i < operands.size(); i += width) {
    gradients.push_back(operands[i]);
  }
  return gradients;
}

// Runs the step over operands without other holders, except those in `held`, which must not change.
void check_in_place(
    std::vector<mx::array> operands,
    const std::vector<mx::array>& held = {},
    const Scalars& scalars = {}) {
  mx::set_default_device(mx::Device::cpu);
  const auto hypers = sample_hypers(Rule::Lamb);
  const auto before = copies_of(held);
  fake::begin();
  const auto expected = run_on_cpu(Rule::Lamb, copies_of(operands), hypers, scalars);
  const auto got = run(Rule::Lamb, std::move(operands), hypers, scalars);
  check_equal(got, expected);
  for (size_t i = 0; i < held.size(); ++i) {
    CHECK(mx::array_equal(held[i], before[i], true).item<bool>());
  }
  check_clean();
}

std::vector<mx::array> lamb(const std::vector<mx::Shape>& shapes, mx::Dtype dtype = mx::float32) {
  return operands_of(Rule::Lamb, shapes, dtype);
}

const std::vector<mx::Shape> some_shapes = {{7}, {64, 65}, {}, {0, 3}, {1}, {17, 4096}, {4096}};

} // namespace

TEST_CASE("two passes in place: each tensor's own rates, whatever its size") {
  check_in_place(lamb(some_shapes));
  CHECK(
      kernels() == std::vector<std::string>{
                       "Lamb_prepare4",
                       "Lamb_state_flat7_f32_f32_f32_f32_to_f32at1_f32at2",
                       "Lamb_state_flat1_f32_f32_f32_f32_to_f32at1_f32at2",
                       "Lamb_rates",
                       "Lamb_rates",
                       "Lamb_parameter_flat7_f32_f32_f32_to_f32at0",
                       "Lamb_parameter_flat1_f32_f32_f32_to_f32at0"});
  const auto& dispatches = fake::log().dispatches;
  CHECK(dispatches[1].groups == 1 + 2 + 1 + 1 + 1);
  CHECK(dispatches[3].groups == 5);
  CHECK(dispatches[4].groups == 1);
  CHECK(dispatches[6].groups == 17);
}

TEST_CASE("one barrier a pass, and none between the tensors of a pass") {
  check_in_place(lamb({{20, 4096}, {30, 4096}, {5}, {40, 4096}}));
  CHECK(fake::log().barriers == 3);
  const auto& dispatches = fake::log().dispatches;
  REQUIRE(dispatches.size() == 1 + 3 * 4);
  for (size_t i = 0; i < dispatches.size(); ++i) {
    CHECK(dispatches[i].behind_barrier == (i % 4 == 1));
  }
}

// MLX inserts no barriers there for buffers that are written.
TEST_CASE("without barriers each pass is a hazard") {
  fake::begin();
  {
    const auto context = mx::metal::get_command_encoder(gpu_stream).start_concurrent();
    run(Rule::Lamb, lamb({{20, 4096}}));
  }
  const auto& hazards = fake::log().hazards;
  for (const char* kernel : {"state", "rates", "parameter"}) {
    CHECK(std::any_of(hazards.begin(), hazards.end(), [&](const std::string& name) {
      return name.find(kernel) != std::string::npos;
    }));
  }
}

TEST_CASE("two passes over halves and mixes of storages") {
  for (mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    check_in_place(lamb(some_shapes, dtype));
  }
  for (const int changed : {0, 1, 3}) { // the parameter, a slot, the gradient
    auto operands = lamb({{31, 33}, {5000}}, mx::bfloat16);
    for (size_t t = 0; t < operands.size(); t += width) {
      operands[t + changed] = mx::astype(operands[t + changed], mx::float32);
    }
    mx::eval(operands);
    CAPTURE(changed);
    check_in_place(std::move(operands));
  }
}

TEST_CASE("two passes over operands of any layout") {
  auto operands = lamb({{40, 36}, {5, 6, 7}, {4100}, {40, 36}, {70, 90}, {40, 36}});
  operands[3] = mx::transpose(numbers({36, 40}, mx::float32, 90)); // a transposed gradient
  operands[7] = mx::transpose(numbers({5, 7, 6}, mx::float32, 91), {0, 2, 1}); // a strided one
  operands[11] = mx::slice(numbers({4103}, mx::float32, 92), {3}, {4103});     // an odd offset
  operands[15] = mx::broadcast_to(mx::array(0.5f), {40, 36});
  operands[16] = mx::transpose(numbers({90, 70}, mx::float32, 93)); // a transposed parameter
  operands[21] = mx::transpose(numbers({36, 40}, mx::float32, 94)); // transposed state
  mx::eval(operands);
  check_in_place(std::move(operands));
  CHECK(count("state_transposed1_") == 1);
  CHECK(count("state_strided1_") == 4);
  CHECK(count("parameter_strided1_") == 1);
  CHECK(count("parameter_flat1_") == 5);
}

TEST_CASE("the state that is held stays, and the second pass reads the new one") {
  auto operands = lamb({{100}, {20, 4096}});
  const std::vector<mx::array> held = {operands[1], operands[2], operands[5], operands[6]};
  check_in_place(std::move(operands), held);
  CHECK(count("_to_f32_f32") == 2);
  CHECK(count("_to_f32at0") == 2);
}

TEST_CASE("a parameter that is held stays, and the new one replaces the gradient") {
  auto operands = lamb({{100}, {20, 4096}});
  const std::vector<mx::array> held = {operands[0], operands[4]};
  const std::vector<const void*> gradients = {
      operands[3].buffer().ptr(), operands[7].buffer().ptr()};
  fake::begin();
  const auto expected = run_on_cpu(Rule::Lamb, copies_of(operands), sample_hypers(Rule::Lamb));
  const auto before = copies_of(held);
  const auto got = run(Rule::Lamb, std::move(operands));
  check_equal(got, expected);
  check_equal(held, before, {.relative = 0.0, .absolute = 0.0});
  CHECK(got[0].buffer().ptr() == gradients[0]);
  CHECK(got[3].buffer().ptr() == gradients[1]);
  CHECK(count("parameter_flat1_f32_f32_f32_to_f32") == 2);
  CHECK(count("_to_f32at0") == 0);
  check_clean();
}

TEST_CASE("two passes scale the gradients, and keep everything where the scale is not finite") {
  for (const float value : {0.3f, INFINITY, NAN}) {
    for (const bool skip_nonfinite : {false, true}) {
      if (!skip_nonfinite && !std::isfinite(value)) {
        continue;
      }
      for (mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
        CAPTURE(value);
        Scalars scalars;
        scalars.scale = GradientScale{mx::array(value), skip_nonfinite, mx::array(0.1f)};
        check_in_place(lamb({{100}, {33, 31}, {17, 4096}}, dtype), {}, scalars);
        const auto operands = lamb({{100}, {33, 31}, {17, 4096}}, dtype);
        check_in_place(operands, operands, scalars);
      }
    }
  }
}

TEST_CASE("two passes that are skipped keep the bits of what lies apart and anyhow") {
  Scalars scalars;
  scalars.scale = GradientScale{mx::array(INFINITY), true};
  auto operands = lamb({{40, 36}, {40, 36}}, mx::bfloat16);
  operands[0] = mx::transpose(numbers({36, 40}, mx::bfloat16, 93));
  operands[7] = mx::astype(mx::transpose(numbers({36, 40}, mx::float32, 94)), mx::float32);
  mx::eval(operands);
  const auto before = copies_of(operands);
  fake::begin();
  const auto got = run(Rule::Lamb, std::move(operands), sample_hypers(Rule::Lamb), scalars);
  for (size_t i = 0; i < got.size(); ++i) {
    const mx::array& old = before[i / 3 * width + i % 3];
    CHECK(mx::array_equal(got[i], mx::astype(old, got[i].dtype())).item<bool>());
  }
  CHECK(got[3].dtype() == mx::float32);
  check_clean();
}

// LARS updates nothing in the first pass; CautiousAdamW updates its slots there.
TEST_CASE("two passes that read the gradient again, in place and held, of any layout, scaled") {
  for (Rule rule : {Rule::LARS, Rule::CautiousAdamW}) {
    const size_t own = info(rule).slots + 2;
    CAPTURE(info(rule).name);
    auto operands = operands_of(rule, {{7}, {64, 65}, {0, 3}, {17, 4096}, {40, 36}}, mx::float32);
    operands[2 * own - 1] = mx::transpose(numbers({65, 64}, mx::float32, 90));
    operands[4 * own] = mx::transpose(numbers({36, 40}, mx::float32, 91));     // a parameter
    operands[4 * own + 1] = mx::transpose(numbers({36, 40}, mx::float32, 92)); // a slot
    for (size_t k = own - 1; k < 2 * own; k += own) {
      operands[k] = mx::astype(operands[k], mx::bfloat16);
    }
    mx::eval(operands);
    for (const float value : {0.3f, INFINITY}) {
      Scalars scalars;
      scalars.scale = GradientScale{mx::array(value), true, mx::array(0.1f)};
      mx::set_default_device(mx::Device::cpu);
      const auto hypers = sample_hypers(rule);
      fake::begin();
      const auto expected = run_on_cpu(rule, copies_of(operands), hypers, scalars);
      const auto before = copies_of(operands);
      check_equal(run(rule, operands, hypers, scalars), expected); // everything is held
      check_equal(operands, before, {.relative = 0.0, .absolute = 0.0});
      check_equal(run(rule, copies_of(operands), hypers, scalars), expected);
      check_clean();
      CHECK(count("_finish_transposed1_") > 0);
      CHECK(count("_finish_strided1_") > 0);
    }
  }
}

TEST_CASE(
    "a parameter that is held stays, and the new one replaces the gradient that is read again") {
  for (Rule rule : {Rule::LARS, Rule::CautiousAdamW}) {
    auto operands = operands_of(rule, {{100}, {20, 4096}}, mx::float32);
    const size_t own = info(rule).slots + 2;
    const std::vector<mx::array> held = {operands[0], operands[own]};
    const void* gradient = operands[2 * own - 1].buffer().ptr();
    const auto hypers = sample_hypers(rule);
    fake::begin();
    const auto expected = run_on_cpu(rule, copies_of(operands), hypers);
    const auto before = copies_of(held);
    const auto got = run(rule, std::move(operands));
    check_equal(got, expected);
    check_equal(held, before, {.relative = 0.0, .absolute = 0.0});
    CHECK(got[own - 1].buffer().ptr() == gradient);
    check_clean();
  }
}

TEST_CASE("two passes over nothing encode nothing") {
  check_in_place(lamb({{0}, {3, 0}}));
  CHECK(fake::log().dispatches.empty());
}

TEST_CASE("two passes over what Metal has no room for are refused before anything is changed") {
  mx::Shape shape(18, 2);
  auto operands = lamb({{9}, shape});
  std::vector<int> axes(18);
  std::iota(axes.rbegin(), axes.rend(), 0);
  operands[width] = mx::transpose(lamb({shape})[0], axes);
  mx::eval(operands);
  const auto before = copies_of(operands);
  fake::begin();
  CHECK_THROWS_WITH_AS(
      run(Rule::Lamb, operands), doctest::Contains("mx.contiguous"), std::runtime_error);
  CHECK(fake::log().dispatches.empty());
  check_equal(operands, before, {.relative = 0.0, .absolute = 0.0});
}

TEST_CASE("what two passes have in their hands is let go when they are done") {
  auto operands = lamb({{8}});
  Buffers outputs;
  for (int k = 0; k < width - 1; ++k) {
    outputs.push_back(operands[k].buffer());
  }
  const Scalars scalars;
  auto inputs = operands;
  inputs.push_back(scalars.step);
  inputs.push_back(scalars.learning_rate);
  const StepSpec spec{Rule::Lamb, {{1, width}}, {}, {{{0.9, 0.999, 1e-6, 0.1}, {}, true}}};
  const std::vector<mx::Dtype> dtypes(3, mx::float32);
  auto keep_alive = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = keep_alive;
  fake::begin();
  gpu::find_backend()
      .backend->prepare(spec, refs_to(inputs), dtypes, gpu_stream, LaunchMode::whole)
      ->enqueue(outputs, std::move(keep_alive));
  CHECK(watched.expired());
  check_clean();
}

TEST_CASE("steps of two passes one after another are kept apart") {
  auto operands = lamb({{7}, {9}, {20, 4096}});
  const auto hypers = sample_hypers(Rule::Lamb);
  auto expected = copies_of(operands);
  const std::vector<mx::array> gradients = gradients_of(expected);
  fake::begin();
  for (int step = 0; step < 3; ++step) {
    auto results = run(Rule::Lamb, std::move(operands));
    auto on_cpu = run_on_cpu(Rule::Lamb, std::move(expected), hypers);
    check_equal(results, on_cpu, {.relative = 3e-6, .absolute = 3e-7});
    operands.clear();
    expected.clear();
    for (size_t t = 0; t < gradients.size(); ++t) {
      for (auto [from, to] : {std::pair(&results, &operands), std::pair(&on_cpu, &expected)}) {
        to->insert(to->end(), from->begin() + 3 * t, from->begin() + 3 * (t + 1));
        to->push_back(gradients[t]);
      }
    }
  }
  check_clean();
}

TEST_CASE("GPT-2's 148 tensors in two passes: dispatches and barriers") {
  auto shapes = gpt2_shapes();
  for (auto& shape : shapes) {
    if (shape.size() == 2) {
      shape = {17, metal::chunk}; // large enough for a dispatch of its own
    }
  }
  fake::begin();
  const auto results = run(Rule::Lamb, lamb(shapes));
  const auto& log = fake::log();
  MESSAGE(
      "GPT-2, Lamb: " << log.dispatches.size() << " dispatches for " << shapes.size()
                      << " tensors, " << log.barriers << " barriers");
  CHECK(log.dispatches.size() == 1 + 3 * (50 + 14));
  CHECK(log.barriers == 3);
  check_clean();
}
