// The global norm and clipping, with the fake of CUDA.
#include <cmath>

#include "checks.h"
#include "mlx/primitives.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"

using namespace mlx_opt;
using namespace steps;

namespace {

// Queues the evaluation without waiting for it.
mx::array queued(mx::array x) {
  std::vector<mx::array> outputs{x};
  x.primitive().eval_gpu(x.inputs(), outputs);
  for (const mx::array& input : x.inputs()) {
    fake::hold(input, fake::gpu_stream);
  }
  x.set_status(mx::array::Status::available);
  x.detach();
  return x;
}

void check_norm(const std::vector<mx::array>& arrays) {
  const auto expected = global_norm(arrays, mx::Device::cpu);
  const auto got = queued(global_norm(arrays, fake::gpu_stream));
  fake::finish(fake::gpu_stream);
  check_equal({got}, {expected});
  check_clean();
}

} // namespace

TEST_CASE("the norm of tensors of all storages and sizes") {
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    check_norm(
        {numbers({7}, dtype, 1),
         numbers({64, 65}, dtype, 2),
         numbers({0, 3}, dtype, 3),
         numbers({}, dtype, 4),
         numbers({32768 * 2 + 5}, dtype, 5)});
  }
}

TEST_CASE("the norm of tensors of any layout") {
  check_norm(
      {evaluated(mx::transpose(numbers({40, 36}, mx::float32, 1))),
       evaluated(mx::transpose(numbers({7, 5, 6}, mx::float16, 2), {1, 2, 0})),
       evaluated(mx::slice(numbers({4103}, mx::bfloat16, 3), {3}, {4103})),
       evaluated(mx::slice(numbers({500, 200}, mx::float32, 4), {1, 3}, {500, 199}, {2, 1})),
       evaluated(mx::slice(numbers({80}, mx::bfloat16, 5), {0}, {80}, {2})),
       evaluated(mx::broadcast_to(mx::array(0.5f), {40, 36}))});
}

TEST_CASE("the norm of more tensors than a table holds") {
  std::vector<mx::array> arrays;
  for (int i = 0; i < 1030; ++i) {
    arrays.push_back(numbers({3}, mx::float32, i));
  }
  check_norm(arrays);
}

TEST_CASE("the norm of nothing is 0") {
  check_norm({numbers({0, 3}, mx::float32, 1)});
}

TEST_CASE("clipping: the scale") {
  for (const float norm : {0.5f, 8.0f, INFINITY, NAN}) {
    for (const bool skip_nonfinite : {false, true}) {
      const mx::array of(norm);
      const Clip clip{2.0, skip_nonfinite};
      const std::optional<mx::array> none;
      const auto limit = std::make_optional(mx::array(3.0f));
      const std::vector<mx::array> expected = {
          gradient_scale(of, clip, mx::Device::cpu).value,
          gradient_scale(of, limit, skip_nonfinite, mx::Device::cpu).value};
      const std::vector<mx::array> got = {
          queued(gradient_scale(of, clip, fake::gpu_stream).value),
          queued(gradient_scale(of, limit, skip_nonfinite, fake::gpu_stream).value)};
      fake::finish(fake::gpu_stream);
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(norm);
        CHECK(mx::allclose(got[i], expected[i], 1e-6, 0, true).item<bool>());
      }
      check_clean();
    }
  }
}

TEST_CASE("a clipped step, none of it waited for before its end") {
  const auto hypers = sample_hypers(Rule::AdamW);
  const Scalars scalars;
  const auto clipped = [&](std::vector<mx::array> operands, mx::Stream stream) {
    const bool cpu = stream.device == mx::Device::cpu;
    auto norm = global_norm({operands[3], operands[7]}, stream);
    norm = cpu ? norm : queued(norm);
    auto scale = gradient_scale(norm, Clip{1.0, true}, stream);
    scale.value = cpu ? scale.value : queued(scale.value);
    const auto& [learning_rate, number, none] = scalars;
    return finished(
        step(Rule::AdamW, std::move(operands), hypers, learning_rate, number, stream, scale),
        stream);
  };
  const auto operands = operands_of(Rule::AdamW, {{64, 65}, {4100}}, mx::float32);
  const auto expected = clipped(copies_of(operands), mx::default_stream(mx::Device::cpu));
  check_equal(clipped(operands, fake::gpu_stream), expected);
  check_clean();
}
