// The elementwise rules, from the primitive's eval_gpu on, with the fake of CUDA.
#include <cuda.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "checks.h"
#include "mlx_opt/backend/find.h"

using namespace mlx_opt;
using namespace steps;

TEST_CASE("the backend is there and has no problem") {
  const auto& [backend, reason] = gpu::find_backend();
  CAPTURE(reason);
  REQUIRE(backend);
  CHECK(backend->problem() == "");
  check_clean();
}

TEST_CASE("every rule makes of its operands what it makes of them on the CPU") {
  for (int i = 0; i < rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    check_against_cpu(rule, operands_of_all_kinds(rule, mx::float32));
  }
}

TEST_CASE("halves, on GPUs that narrow two at once and on others") {
  for (mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    const auto operands = operands_of_all_kinds(Rule::AdamW, dtype);
    check_against_cpu(Rule::AdamW, operands);
    check_against_cpu(Rule::AdamW, operands, {}, fake::older_gpu_stream);
  }
}

TEST_CASE("mixes of storages") {
  const mx::Dtype storages[] = {mx::float32, mx::float16, mx::bfloat16};
  for (int i = 0; i < 3; ++i) {
    auto operands = operands_of_all_kinds(Rule::Lion, storages[i]);
    for (size_t k = 1; k < operands.size(); k += 3) {
      operands[k] = evaluated(mx::astype(operands[k], storages[(i + 1) % 3]));
    }
    check_against_cpu(Rule::Lion, operands);
  }
}

TEST_CASE("a state in dtypes of its own") {
  const mx::array nan(std::numeric_limits<float>::quiet_NaN());
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const bool skips : {false, true}) {
      CAPTURE(skips);
      const mlx_opt::GradientScale scale{skips ? nan : mx::array(0.5f), true};
      const steps::Scalars scalars{.scale = scale};
      const auto cpu = mx::default_stream(mx::Device::cpu);
      auto operands = operands_of_all_kinds(Rule::AdamW, dtype);
      const auto expected =
          finished(steps::narrow_adamw(steps::copies_of(operands), scalars, cpu), cpu);
      auto results = steps::narrow_adamw(std::move(operands), scalars, fake::gpu_stream);
      steps::check_equal(finished(std::move(results), fake::gpu_stream), expected);
      check_clean();
    }
  }
}

TEST_CASE("operands of any layout") {
  auto operands = operands_of(Rule::AdamW, {{4100}, {40, 36}, {40, 36}, {9}}, mx::float32);
  operands[3] = evaluated(mx::slice(numbers({4103}, mx::float32, 92), {3}, {4103}));
  operands[7] = evaluated(mx::broadcast_to(mx::array(0.5f), {40, 36}));
  operands[8] = transposed({40, 36}, mx::float32, 93);
  operands[11] = transposed({40, 36}, mx::float32, 94);
  operands[13] = evaluated(mx::slice(numbers({27}, mx::float32, 95), {1}, {27}, {3}));
  check_against_cpu(Rule::AdamW, operands);
}

TEST_CASE("chunks and tiles of large tensors") {
  auto operands = operands_of(Rule::SGD, {{12293}, {129, 200}, {3, 4099}}, mx::bfloat16);
  operands[3] = transposed({129, 200}, mx::bfloat16, 90);
  operands[5] = evaluated(mx::slice(numbers({3, 4100}, mx::bfloat16, 91), {0, 1}, {3, 4100}));
  check_against_cpu(Rule::SGD, operands);
}

TEST_CASE("more tensors than a table holds") {
  int version = 0;
  cuDriverGetVersion(&version);
  const bool small = version < 12010;
  const std::vector<mx::Shape> shapes(457, {5});
  // SGD's records are narrower, so a launch holds more.
  for (const auto& [rule, launches] :
       {std::pair{Rule::AdamW, small ? 9 : 2}, {Rule::SGD, small ? 5 : 1}}) {
    const auto operands = operands_of(rule, shapes, mx::float32);
    check_against_cpu(rule, operands);
    run(rule, operands);
    // After the launch that computes the scalars.
    CHECK(fake::log().launches.size() == 1 + launches);
    check_clean();
  }
}

TEST_CASE("more dimensions than the kernels have are refused before anything is changed") {
  auto operands = operands_of(Rule::SGD, {mx::Shape(18, 2)}, mx::float32);
  std::vector<int> axes(18);
  std::iota(axes.rbegin(), axes.rend(), 0);
  operands[1] = evaluated(mx::transpose(numbers(mx::Shape(18, 2), mx::float32, 1), axes));
  const auto before = copies_of(operands);
  CHECK_THROWS_WITH_AS(
      run(Rule::SGD, operands), doctest::Contains("mx.contiguous"), std::runtime_error);
  fake::finish(fake::gpu_stream);
  CHECK(fake::log().launches.empty());
  CHECK(mx::array_equal(operands[0], before[0]).item<bool>());
}

TEST_CASE("traced hyperparameters are read when the step runs") {
  const auto operands = operands_of(Rule::AdamW, {{100}}, mx::float32);
  std::vector<Scalar> traced;
  for (const Scalar& x : sample_hypers(Rule::AdamW)) {
    traced.push_back(evaluated(mx::array(static_cast<float>(std::get<double>(x)))));
  }
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected = run(Rule::AdamW, copies_of(operands), traced, {}, cpu);
  check_equal(run(Rule::AdamW, operands, traced), expected);
  check_clean();
}

TEST_CASE("gradients are scaled, and a step whose scale is not finite is skipped") {
  for (const float value : {0.3f, INFINITY, NAN}) {
    for (const bool skip_nonfinite : {false, true}) {
      if (std::isfinite(value) || skip_nonfinite) {
        Scalars scalars;
        scalars.scale = GradientScale{mx::array(value), skip_nonfinite};
        check_against_cpu(Rule::Lion, operands_of_all_kinds(Rule::Lion, mx::bfloat16), scalars);
      }
    }
  }
}

TEST_CASE("elements of the scaled gradients are clipped") {
  Scalars scalars;
  scalars.scale = GradientScale{mx::array(0.3f), false, mx::array(0.1f)};
  check_against_cpu(Rule::Lion, operands_of_all_kinds(Rule::Lion, mx::bfloat16), scalars);
  check_against_cpu(
      Rule::AdamAMSGrad, operands_of_all_kinds(Rule::AdamAMSGrad, mx::float32), scalars);
}

TEST_CASE("all buffers that nobody else holds are written in place, applied or not") {
  for (const float scale : {0.3f, INFINITY}) {
    auto operands = operands_of_all_kinds(Rule::AdamW, mx::float32);
    const auto copies = copies_of(operands);
    std::vector<const void*> buffers;
    for (size_t i = 0; i < operands.size(); ++i) {
      if (i % 4 != 3) {
        buffers.push_back(operands[i].buffer().ptr());
      }
    }
    Scalars scalars;
    scalars.scale = GradientScale{mx::array(scale), true};
    const auto hypers = sample_hypers(Rule::AdamW);
    const auto got = run(Rule::AdamW, std::move(operands), hypers, scalars);
    REQUIRE(got.size() == buffers.size());
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK((got[i].size() == 0 || got[i].buffer().ptr() == buffers[i]));
    }
    const auto cpu = mx::default_stream(mx::Device::cpu);
    check_equal(got, run(Rule::AdamW, copies, hypers, scalars, cpu));
    check_clean();
  }
}

TEST_CASE("a buffer that is held stays as it is") {
  auto operands = operands_of(Rule::AdamW, {{1000}}, mx::float32);
  const mx::array held = operands[0];
  const auto before = copies_of({held})[0];
  const auto results = run(Rule::AdamW, std::move(operands));
  CHECK(results[0].buffer().ptr() != held.buffer().ptr());
  CHECK(mx::array_equal(held, before).item<bool>());
  check_clean();
}

TEST_CASE("a step that starts early is sent off in two parts, and is the same") {
  auto operands = operands_of(Rule::SGD, std::vector<mx::Shape>(20, {5}), mx::float32);
  for (const auto& x : operands_of_all_kinds(Rule::SGD, mx::float32)) {
    operands.push_back(x);
  }
  operands.push_back(numbers({9}, mx::float32, 93));
  operands.push_back(evaluated(mx::slice(numbers({27}, mx::float32, 94), {1}, {27}, {3})));
  const auto cpu = mx::default_stream(mx::Device::cpu);
  const auto expected = run(Rule::SGD, copies_of(operands), {0.1, 0.0, 0.0, 0.0}, {}, cpu);
  std::vector<mx::array> parameters;
  Buffers overwritten;
  for (size_t i = 0; i < operands.size(); i += 2) {
    parameters.push_back(operands[i]);
    overwritten.push_back(operands[i].buffer());
  }
  const Scalars scalars;
  operands.push_back(scalars.learning_rate);
  const ArrayRefs inputs = refs_to(operands);
  const std::vector<mx::Dtype> dtypes(parameters.size(), mx::float32);
  auto keep_alive = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = keep_alive;
  const int before = fake::commits(fake::gpu_stream);
  gpu::find_backend()
      .backend
      ->prepare(sgd(parameters.size(), 0.1), inputs, dtypes, fake::gpu_stream, LaunchMode::split)
      ->enqueue(overwritten, std::move(keep_alive));
  CHECK(fake::commits(fake::gpu_stream) == before + 2);
  CHECK(!watched.expired());
  fake::finish(fake::gpu_stream);
  CHECK(watched.expired());
  check_equal(parameters, expected);
  // The scalars, the early tensors, other flat ones, transposed ones, a strided one.
  REQUIRE(fake::log().launches.size() == 5);
  CHECK(fake::log().launches[1].blocks == 16);
  check_clean();
}

TEST_CASE("a step is queued behind the last, and the host is at most two ahead") {
  const auto* backend = gpu::find_backend().backend;
  const Scalars scalars;
  auto operands = operands_of(Rule::SGD, {{8}}, mx::float32);
  const auto before = copies_of(operands);
  const std::vector<mx::array> inputs = {operands[0], operands[1], scalars.learning_rate};
  std::vector<std::weak_ptr<int>> watched;
  for (int i = 0; i < 3; ++i) {
    auto keep_alive = std::make_shared<int>(0);
    watched.push_back(keep_alive);
    backend
        ->prepare(sgd(1, 0.0), refs_to(inputs), {mx::float32}, fake::gpu_stream, LaunchMode::whole)
        ->enqueue({operands[0].buffer()}, std::move(keep_alive));
  }
  CHECK(watched[0].expired());
  CHECK(!watched[1].expired());
  backend->wait_for_turn(fake::gpu_stream);
  CHECK(watched[1].expired());
  CHECK(!watched[2].expired());
  fake::finish(fake::gpu_stream);
  CHECK(watched[2].expired());
  check_equal({operands[0]}, {before[0] - mx::array(0.03f) * before[1]});
  check_clean();
}
