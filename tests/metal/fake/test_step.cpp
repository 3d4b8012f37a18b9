// The production host code, from the primitive's eval_gpu to the encoder, against a fake of Metal.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "mlx/backend/metal/device.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/graph/step_primitive.h"
#include "tensors.h"

using namespace mlx_opt;

TEST_CASE("the fake says what is none of Metal's") {
  fake::begin();
  auto& encoder = mx::metal::get_command_encoder(gpu_stream);
  auto x = numbers({8}, mx::float32, 1);
  mx::eval(x);
  encoder.set_input_array(x, 31);
  CHECK(fake::log().errors.back() == "slot 31 is none of Metal's");
  encoder.set_vector_bytes(std::vector<char>(5000), 1);
  CHECK(fake::log().errors.back() == "setBytes of 5000 bytes");
  fake::begin();
}

TEST_CASE("the backend is there and has no problem") {
  const auto& [backend, reason] = gpu::find_backend();
  REQUIRE(backend);
  CHECK(backend->problem() == "");
}

TEST_CASE("every rule makes of its operands what it makes of them on the CPU") {
  mx::set_default_device(mx::Device::cpu);
  for (int i = 0; i < rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    check_against_cpu(rule, operands_of(rule, {{7}, {64, 65}, {}, {0, 3}, {1}}, mx::float32));
  }
}

TEST_CASE("halves and mixes of storages") {
  for (mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    check_against_cpu(Rule::AdamW, operands_of(Rule::AdamW, {{7}, {64, 65}}, dtype));
  }
  auto operands = operands_of(Rule::Lion, {{31, 33}}, mx::bfloat16);
  operands[1] = mx::astype(operands[1], mx::float32);
  mx::eval(operands);
  check_against_cpu(Rule::Lion, operands);
}

TEST_CASE("a state in dtypes of its own") {
  const mx::array nan(std::numeric_limits<float>::quiet_NaN());
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const bool skips : {false, true}) {
      CAPTURE(skips);
      const mlx_opt::GradientScale scale{skips ? nan : mx::array(0.5f), true};
      const Scalars scalars{.scale = scale};
      auto operands = operands_of(Rule::AdamW, {{7}, {64, 68}, {5, 6, 7}}, dtype);
      fake::begin();
      auto expected =
          narrow_adamw(copies_of(operands), scalars, mx::default_stream(mx::Device::cpu));
      mx::eval(expected);
      auto results = narrow_adamw(std::move(operands), scalars, gpu_stream);
      check_equal(evaluate_on_gpu(std::move(results)), expected);
      check_clean();
    }
  }
}

TEST_CASE("operands of any layout") {
  auto operands = operands_of(Rule::AdamW, {{40, 36}, {5, 6, 7}, {4100}, {40, 36}}, mx::float32);
  operands[3] = mx::transpose(numbers({36, 40}, mx::float32, 90)); // transposed gradient
  operands[7] = mx::transpose(numbers({7, 5, 6}, mx::float32, 91), {1, 2, 0}); // strided gradient
  operands[11] = mx::slice(numbers({4103}, mx::float32, 92), {3}, {4103});     // an odd offset
  operands[15] = mx::broadcast_to(mx::array(0.5f), {40, 36});
  operands[12] = mx::transpose(numbers({36, 40}, mx::float32, 93)); // transposed parameter
  mx::eval(operands);
  check_against_cpu(Rule::AdamW, operands);
}

TEST_CASE("more dimensions than the kernels have are refused before anything is changed") {
  mx::Shape shape(18, 2);
  auto operands = operands_of(Rule::SGD, {shape}, mx::float32);
  mx::Shape start(18, 0), stop(18, 4), strides(18, 2);
  operands[1] = mx::broadcast_to(mx::array(1.0f), shape);
  std::vector<int> axes(18);
  std::iota(axes.rbegin(), axes.rend(), 0);
  operands[1] = mx::transpose(operands_of(Rule::SGD, {shape}, mx::float32)[0], axes);
  mx::eval(operands);
  const auto before = copies_of(operands);
  fake::begin();
  CHECK_THROWS_WITH_AS(
      run(Rule::SGD, operands), doctest::Contains("mx.contiguous"), std::runtime_error);
  CHECK(fake::log().dispatches.empty());
  CHECK(mx::array_equal(operands[0], before[0]).item<bool>());
}

TEST_CASE("traced hyperparameters are read when the step runs") {
  const auto operands = operands_of(Rule::AdamW, {{100}}, mx::float32);
  const auto constants = sample_hypers(Rule::AdamW);
  std::vector<Scalar> traced;
  for (const Scalar& x : constants) {
    traced.push_back(mx::array(static_cast<float>(std::get<double>(x))));
  }
  fake::begin();
  const auto expected = run_on_cpu(Rule::AdamW, copies_of(operands), traced);
  const auto got = run(Rule::AdamW, operands, traced, Scalars{});
  check_equal(got, expected);
  check_clean();
}

TEST_CASE("gradients are scaled, and a step whose scale is not finite is skipped") {
  const auto check = [](const GradientScale& scale) {
    const auto operands = operands_of(Rule::Lion, {{100}, {33, 31}}, mx::bfloat16);
    Scalars scalars;
    scalars.scale = scale;
    const auto hypers = sample_hypers(Rule::Lion);
    fake::begin();
    const auto expected = run_on_cpu(Rule::Lion, copies_of(operands), hypers, scalars);
    const auto got = run(Rule::Lion, operands, hypers, scalars);
    check_equal(got, expected);
    check_clean();
  };
  check({mx::array(0.3f), false});
  check({mx::array(INFINITY), true});
  check({mx::array(0.3f), false, mx::array(0.1f)}); // elements are clipped too
}

TEST_CASE("a step over nothing encodes nothing") {
  fake::begin();
  const auto results = run(Rule::AdamW, operands_of(Rule::AdamW, {{0}, {3, 0}}, mx::float32));
  CHECK(results[0].shape() == mx::Shape{0});
  CHECK(fake::log().dispatches.empty());
  check_clean();
}

TEST_CASE("all buffers that nobody else holds are written in place") {
  auto operands = operands_of(Rule::AdamW, {{7}, {300, 300}}, mx::float32);
  std::vector<const void*> buffers;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (i % 4 != 3) {
      buffers.push_back(operands[i].buffer().ptr());
    }
  }
  fake::begin();
  const auto results = run(Rule::AdamW, std::move(operands));
  REQUIRE(results.size() == buffers.size());
  for (size_t i = 0; i < results.size(); ++i) {
    CHECK(results[i].buffer().ptr() == buffers[i]);
  }
  CHECK(ends_with(last_kernel(), "_to_f32at0_f32at1_f32at2"));
  check_clean();
}

TEST_CASE("a buffer that is held stays as it is") {
  auto operands = operands_of(Rule::AdamW, {{1000}}, mx::float32);
  const mx::array held = operands[0];
  const auto before = copies_of({held})[0];
  const auto expected = run_on_cpu(Rule::AdamW, copies_of(operands), sample_hypers(Rule::AdamW));
  fake::begin();
  const auto results = run(Rule::AdamW, std::move(operands));
  CHECK(results[0].buffer().ptr() != held.buffer().ptr());
  CHECK(mx::array_equal(held, before).item<bool>());
  CHECK(ends_with(last_kernel(), "_to_f32at3_f32at1_f32at2")); // the gradient's buffer
  check_equal(results, expected);
  check_clean();
}

TEST_CASE("results of tensors that are held lie apart, beside others in place") {
  auto operands = operands_of(Rule::Lion, {{100}, {200}, {300}}, mx::float32);
  const std::vector<mx::array> held(operands.begin(), operands.begin() + 3);
  const auto before = copies_of(held);
  const auto expected = run_on_cpu(Rule::Lion, copies_of(operands), sample_hypers(Rule::Lion));
  fake::begin();
  const auto results = run(Rule::Lion, std::move(operands));
  const auto& dispatches = fake::log().dispatches;
  REQUIRE(dispatches.size() == 3);
  CHECK(ends_with(dispatches[1].kernel, "flat1_f32_f32_f32_to_f32_f32"));
  CHECK(ends_with(dispatches[2].kernel, "flat9_f32_f32_f32_to_f32at0_f32at1"));
  check_equal(held, before);
  check_equal(results, expected);
  check_clean();
}

TEST_CASE("what the step has in its hands is let go when it is done") {
  auto operands = operands_of(Rule::SGD, {{8}}, mx::float32);
  const Buffers outputs{operands[0].buffer()};
  const Scalars scalars;
  auto inputs = operands;
  inputs.push_back(scalars.learning_rate);
  const auto* backend = gpu::find_backend().backend;
  auto keep_alive = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = keep_alive;
  fake::begin();
  backend->prepare(sgd(1, 0.1), refs_to(inputs), {mx::float32}, gpu_stream, LaunchMode::whole)
      ->enqueue(outputs, std::move(keep_alive));
  CHECK(watched.expired());
  backend->wait_for_turn(gpu_stream);
  check_clean();
}

TEST_CASE("GPT-2's 148 tensors: dispatches and barriers") {
  // Every large tensor has buffers, but short ones: the counts depend only on whether a tensor is
  // large.
  auto shapes = gpt2_shapes();
  REQUIRE(shapes.size() == 148);
  for (auto& shape : shapes) {
    if (shape.size() == 2) {
      shape = {17, metal::chunk};
    }
  }
  fake::begin();
  const auto results = run(Rule::AdamW, operands_of(Rule::AdamW, shapes, mx::float32));
  const auto& log = fake::log();
  const auto packs = std::count_if(log.dispatches.begin(), log.dispatches.end(), [](const auto& d) {
    return d.kernel.find("flat7") != std::string::npos;
  });
  MESSAGE(
      "GPT-2, AdamW: " << log.dispatches.size() << " dispatches for " << shapes.size()
                       << " tensors (1 for the scalars, " << packs << " of up to 7 small tensors), "
                       << log.barriers << " barrier");
  CHECK(log.dispatches.size() == 1 + 50 + 14);
  CHECK(packs == 14);
  CHECK(log.barriers == 1);
  CHECK(log.dispatches[1].behind_barrier);
  check_clean();
}

TEST_CASE("steps one after another are kept apart") {
  auto operands = operands_of(Rule::AdamW, {{7}, {9}}, mx::float32);
  const mx::array gradient = operands[3];
  fake::begin();
  auto results = run(Rule::AdamW, std::move(operands));
  const int barriers = fake::log().barriers;
  std::vector<mx::array> next;
  for (int t = 0; t < 2; ++t) {
    next.insert(next.end(), results.begin() + 3 * t, results.begin() + 3 * (t + 1));
    next.push_back(numbers(results[3 * t].shape(), mx::float32, 50 + t));
  }
  mx::eval(next);
  results.clear();
  results = run(Rule::AdamW, std::move(next));
  CHECK(fake::log().barriers > barriers);
  check_clean();
}

// MLX omits the barrier between a reader and a writer of one buffer inside a ConcurrentContext;
// this backend opens none.
TEST_CASE("an update in place after a reader: a hazard inside a ConcurrentContext, none outside") {
  for (const bool concurrent : {false, true}) {
    auto operands = operands_of(Rule::SGD, {{256}}, mx::float32);
    auto readers = operands_of(Rule::SGD, {{256}}, mx::float32);
    readers[1] = operands[0]; // a step that reads the parameter as its gradient
    fake::begin();
    const auto first = run(Rule::SGD, std::move(readers));
    auto& encoder = mx::metal::get_command_encoder(gpu_stream);
    {
      std::optional<mx::metal::CommandEncoder::ConcurrentContext> context;
      if (concurrent) {
        context.emplace(encoder);
      }
      const auto second = run(Rule::SGD, std::move(operands));
    }
    const bool of_update =
        std::any_of(fake::log().hazards.begin(), fake::log().hazards.end(), [](const auto& name) {
          return name.find("flat") != std::string::npos;
        });
    CHECK(of_update == concurrent);
    CHECK(fake::log().errors.empty());
  }
}
