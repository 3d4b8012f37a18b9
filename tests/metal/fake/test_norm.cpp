// The production host code of the norm and of clipping, against a fake of Metal.
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <optional>

#include "mlx/primitives.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/backend/metal/norm_source.h"
#include "mlx_opt/backend/metal/norm_tables.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"
#include "mlx_opt/graph/ops.h"
#include "tensors.h"

using namespace mlx_opt;

namespace {

using Arrays = std::vector<mx::array>;

const mx::Stream cpu_stream = mx::default_stream(mx::Device::cpu);

// Evaluates the primitive of `result`, as MLX does on a GPU.
mx::array evaluated(mx::array result) {
  Arrays outputs{result};
  result.primitive().eval_gpu(result.inputs(), outputs);
  result.set_status(mx::array::Status::available);
  result.detach();
  return result;
}

double norm_of(const Arrays& arrays) {
  return evaluated(global_norm(arrays, gpu_stream)).item<float>();
}

void check_against_cpu(const Arrays& arrays) {
  const double expected = global_norm(arrays, cpu_stream).item<float>();
  fake::begin();
  CHECK(norm_of(arrays) == doctest::Approx(expected).epsilon(3e-7));
  check_clean();
}

Arrays arrays_of(const std::vector<mx::Shape>& shapes, mx::Dtype dtype) {
  Arrays arrays;
  for (const auto& shape : shapes) {
    arrays.push_back(numbers(shape, dtype, static_cast<int>(arrays.size())));
  }
  mx::eval(arrays);
  return arrays;
}

long dispatches_of(const std::string& kernel) {
  const auto& all = fake::log().dispatches;
  return std::count_if(all.begin(), all.end(), [&](const fake::Dispatch& d) {
    return d.kernel.find(kernel) != std::string::npos;
  });
}

} // namespace

TEST_CASE("the norm is the CPU's") {
  mx::set_default_device(mx::Device::cpu);
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    check_against_cpu(arrays_of({{7}, {64, 65}, {}, {0, 3}, {5, metal::norm_chunk}}, dtype));
  }
  check_against_cpu({numbers({9}, mx::float32, 1), numbers({9}, mx::float16, 2)});
}

TEST_CASE("the norm of arrays of any layout") {
  const auto matrix = arrays_of({{300, 400}}, mx::float32)[0];
  const auto line = arrays_of({{metal::norm_chunk + 9}}, mx::bfloat16)[0];
  const auto end = static_cast<int>(line.size());
  Arrays arrays{
      mx::transpose(matrix),
      mx::slice(matrix, {1, 3}, {299, 399}, {2, 5}),
      mx::slice(matrix, {299, 399}, {-301, -401}, {-1, -7}),
      mx::slice(line, {1}, {end}),
      mx::broadcast_to(mx::array(0.5f), {40, 36})};
  mx::eval(arrays);
  check_against_cpu(arrays);
  CHECK(dispatches_of("strided_squares") == 3);
}

TEST_CASE("the norm of nothing is zero") {
  check_against_cpu({});
  check_against_cpu(arrays_of({{0}, {3, 0}}, mx::float32));
  CHECK(fake::log().dispatches.size() == 1);
}

TEST_CASE("the norm neither overflows nor underflows nor hides what is not finite") {
  const auto all = [](float x) { return Arrays{mx::full({5000}, x), mx::array(1e-3f * x)}; };
  for (float x : {1e-30f, 1e-20f, 1e20f, 1e36f}) {
    auto arrays = all(x);
    mx::eval(arrays);
    check_against_cpu(arrays);
  }
  fake::begin();
  for (float bad : {-INFINITY, INFINITY}) {
    CHECK(norm_of({mx::array(1.0f), mx::array(bad)}) == INFINITY);
  }
  CHECK(std::isnan(norm_of({mx::array(INFINITY), mx::array(NAN)})));
  CHECK(norm_of({mx::array(3e38f), mx::array(3e38f)}) == INFINITY);
  check_clean();
}

TEST_CASE("more dimensions than the norm's kernels have are refused before anything is encoded") {
  std::vector<int> axes(18);
  std::iota(axes.rbegin(), axes.rend(), 0);
  auto x = mx::slice(numbers(mx::Shape(18, 2), mx::float32, 1), mx::Shape(18, 0), [] {
    mx::Shape stop(18, 2);
    stop[17] = 1;
    return stop;
  }());
  x = mx::transpose(x, axes);
  mx::eval(x);
  fake::begin();
  CHECK_THROWS_WITH_AS(norm_of({x}), doctest::Contains("mx.contiguous"), std::runtime_error);
  CHECK(fake::log().dispatches.empty());
}

TEST_CASE("the scale is the CPU's") {
  const auto scale =
      [](float norm, std::optional<float> max_norm, bool skip_nonfinite, mx::Stream stream) {
        const mx::array of(norm);
        auto scale = max_norm ? gradient_scale(of, mx::array(*max_norm), skip_nonfinite, stream)
                              : gradient_scale(of, Clip{2.0, skip_nonfinite}, stream);
        return stream == gpu_stream ? evaluated(scale.value).item<float>()
                                    : scale.value.item<float>();
      };
  fake::begin();
  for (float norm : {0.0f, 1.0f, 30.0f, INFINITY, NAN}) {
    for (bool skip_nonfinite : {false, true}) {
      for (std::optional<float> max_norm : {std::optional<float>(), std::optional<float>(0.5f)}) {
        CAPTURE(norm);
        const float expected = scale(norm, max_norm, skip_nonfinite, cpu_stream);
        const float got = scale(norm, max_norm, skip_nonfinite, gpu_stream);
        CHECK((got == expected || (std::isnan(got) && std::isnan(expected))));
      }
    }
  }
  check_clean();
}

TEST_CASE("GPT-2's norm: dispatches and barriers, and the clipped step") {
  auto shapes = gpt2_shapes();
  for (auto& shape : shapes) {
    if (shape.size() == 2) { // large, and no more: what is counted does not depend on it
      shape = {5, metal::norm_chunk};
    }
  }
  auto gradients = arrays_of(shapes, mx::float32);
  const double expected = global_norm(gradients, cpu_stream).item<float>();
  fake::begin();
  const auto norm = evaluated(global_norm(gradients, gpu_stream));
  CHECK(norm.item<float>() == doctest::Approx(expected).epsilon(3e-7));
  const auto& log = fake::log();
  MESSAGE(
      "GPT-2's norm: " << log.dispatches.size() << " dispatches, " << log.barriers << " barrier");
  CHECK(dispatches_of("squares1_") == 50);
  CHECK(dispatches_of("squares" + std::to_string(metal::max_squares_per_pack) + "_") == 4);
  CHECK(log.dispatches.size() == 50 + 4 + 1);
  CHECK(log.barriers == 1);
  CHECK(log.dispatches.back().behind_barrier);

  const auto scale = evaluated(gradient_scale(norm, Clip{1.0}, gpu_stream).value);
  CHECK(log.barriers == 2);
  CHECK(log.dispatches.back().behind_barrier);
  CHECK(scale.item<float>() == doctest::Approx(1.0 / expected).epsilon(3e-7));
  check_clean();
}

TEST_CASE("a clipped step is the CPU's, and waits for what it reads") {
  const auto parameters = arrays_of({{7}, {64, 65}}, mx::bfloat16);
  const auto gradients = arrays_of({{7}, {64, 65}}, mx::bfloat16);
  const mx::array learning_rate(0.01f), number(3, mx::uint64);
  const Clip clip{0.5, true};
  const auto operands = [&] {
    return copies_of({parameters[0], gradients[0], parameters[1], gradients[1]});
  };
  const auto scaled = gradient_scale(global_norm(gradients, cpu_stream), clip, cpu_stream);
  auto expected =
      step(Rule::SGD, operands(), {0.1, 0.0, 0.0, 0.0}, learning_rate, number, cpu_stream, scaled);
  mx::eval(expected);

  fake::begin();
  const auto norm = evaluated(global_norm(gradients, gpu_stream));
  const GradientScale scale{evaluated(gradient_scale(norm, clip, gpu_stream).value), true};
  auto got =
      step(Rule::SGD, operands(), {0.1, 0.0, 0.0, 0.0}, learning_rate, number, gpu_stream, scale);
  Arrays token{got[0].inputs()[0]};
  token[0].primitive().eval_gpu(token[0].inputs(), token);
  for (mx::array& x : got) {
    x = evaluated(x);
  }
  check_equal(got, expected);
  CHECK(fake::log().barriers == 4); // before the norm, the scale, the step's scalars, the step
  check_clean();

  // The results of a step may be the gradients of another.
  const int before = fake::log().barriers;
  const double of_results = global_norm(expected, cpu_stream).item<float>();
  CHECK(norm_of(got) == doctest::Approx(of_results).epsilon(1e-2));
  CHECK(fake::log().barriers == before + 2);
  check_clean();
}
