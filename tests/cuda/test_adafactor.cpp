// Adafactor, from the primitive's eval_gpu on, with the fake of CUDA.
#include <cmath>

#include "checks.h"
#include "mlx_opt/backend/find.h"

using namespace mlx_opt;
using namespace steps;

namespace {

struct Storages {
  mx::Dtype parameter, means, first_moment, gradient;
};

const Storages single = {mx::float32, mx::float32, mx::float32, mx::float32};
const Storages halves = {mx::bfloat16, mx::bfloat16, mx::bfloat16, mx::bfloat16};

// A step's tensors. Those that are not factored come first.
struct Tensors {
  bool first_moment;
  size_t unfactored = 0;
  std::vector<mx::array> operands{};

  size_t last() const {
    return operands.size() - 1;
  }

  void add(const mx::Shape& shape, bool factored, const Storages& storages) {
    const int seed = static_cast<int>(operands.size());
    operands.push_back(numbers(shape, storages.parameter, seed));
    for (int k = 0; k <= factored; ++k) {
      const auto means = state_shape(shape, factored, k);
      operands.push_back(numbers(means, storages.means, seed + 1 + k));
    }
    if (first_moment) {
      operands.push_back(numbers(shape, storages.first_moment, seed + 4));
    }
    operands.push_back(numbers(shape, storages.gradient, seed + 5));
    unfactored += !factored;
  }
};

std::vector<Scalar> hypers(bool first_moment) {
  return {1e-30, 1e-3, 0.9, -0.8, first_moment ? 0.9 : 0.0, 0.1, 1.0, 0.0, 0.0};
}

std::vector<mx::array> run(
    Tensors tensors, const Scalars& scalars = {}, mx::Stream stream = fake::gpu_stream) {
  const auto& [learning_rate, number, scale] = scalars;
  auto results = adafactor(
      std::move(tensors.operands),
      tensors.unfactored,
      tensors.first_moment,
      hypers(tensors.first_moment),
      learning_rate,
      number,
      stream,
      scale);
  return finished(std::move(results), stream);
}

std::vector<mx::array> run_on_cpu(Tensors tensors, const Scalars& scalars = {}) {
  tensors.operands = copies_of(tensors.operands);
  return run(std::move(tensors), scalars, mx::default_stream(mx::Device::cpu));
}

// The order of the sums differs from the CPU's.
constexpr double error = 1e-5;

void check_against_cpu(const Tensors& tensors, const Scalars& scalars = {}) {
  const auto expected = run_on_cpu(tensors, scalars);
  check_equal(run(tensors, scalars), expected, {.relative = error});
  check_clean();
}

Tensors tensors_of_all_sizes(bool first_moment, const Storages& storages) {
  Tensors tensors{first_moment};
  for (const mx::Shape& shape : std::vector<mx::Shape>{{7}, {}, {0}, {4100}, {16389}, {2, 3, 4}}) {
    tensors.add(shape, false, storages);
  }
  for (const mx::Shape& shape : std::vector<mx::Shape>{
           {1, 1}, {3, 5}, {130, 140}, {0, 4}, {4, 0}, {3, 0, 5}, {2, 3, 5, 8}, {2, 129, 132}}) {
    tensors.add(shape, true, storages);
  }
  return tensors;
}

// An array whose last two dimensions are transposed in memory.
mx::array transposed_matrices(mx::Shape shape, mx::Dtype dtype, int seed) {
  std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
  return evaluated(mx::swapaxes(numbers(shape, dtype, seed), -1, -2));
}

Tensors with_transposed_gradients(bool first_moment, const Storages& storages) {
  Tensors tensors{first_moment};
  for (const mx::Shape& shape :
       std::vector<mx::Shape>{{3, 5}, {140, 270}, {264, 136}, {2, 131, 133}, {2, 3, 4, 8}}) {
    tensors.add(shape, true, storages);
    tensors.operands.back() =
        transposed_matrices(shape, storages.gradient, static_cast<int>(tensors.last()));
  }
  return tensors;
}

} // namespace

TEST_CASE("Adafactor makes of its operands what it makes of them on the CPU") {
  for (const bool first_moment : {false, true}) {
    CAPTURE(first_moment);
    check_against_cpu(tensors_of_all_sizes(first_moment, single));
    check_against_cpu(tensors_of_all_sizes(first_moment, halves));
  }
}

TEST_CASE("Adafactor of mixed storages") {
  check_against_cpu(
      tensors_of_all_sizes(true, {mx::float16, mx::float32, mx::bfloat16, mx::float32}));
}

TEST_CASE("Adafactor with transposed gradients") {
  for (const bool first_moment : {false, true}) {
    CAPTURE(first_moment);
    check_against_cpu(with_transposed_gradients(first_moment, single));
    check_against_cpu(with_transposed_gradients(first_moment, halves));
  }
}

TEST_CASE("Adafactor with operands of any layout") {
  Tensors tensors{true};
  tensors.add({5, 6}, false, single);
  tensors.operands[1] = evaluated(mx::transpose(numbers({6, 5}, mx::float32, 90)));
  tensors.add({4, 130, 5}, true, single);
  tensors.operands.back() =
      evaluated(mx::transpose(numbers({130, 5, 4}, mx::float32, 91), {2, 0, 1}));
  tensors.add({130, 140}, true, single);
  tensors.operands.back() = evaluated(mx::broadcast_to(mx::array(0.5f), {130, 140}));
  tensors.add({2, 33, 40}, true, single);
  tensors.operands[tensors.last() - 4] = transposed_matrices({2, 33, 40}, mx::float32, 92);
  tensors.operands[tensors.last() - 3] =
      evaluated(mx::transpose(numbers({33, 2}, mx::float32, 93)));
  tensors.operands[tensors.last() - 2] =
      evaluated(mx::slice(numbers({2, 80}, mx::float32, 94), {0, 0}, {2, 80}, {1, 2}));
  tensors.operands[tensors.last() - 1] = transposed_matrices({2, 33, 40}, mx::float32, 95);
  check_against_cpu(tensors);
}

// Vectors are read at multiples of 4 or 8 elements; a matrix that begins elsewhere goes by
// elements.
TEST_CASE("Adafactor with operands that are not aligned") {
  Tensors tensors{false};
  tensors.add({64, 68}, true, halves);
  const auto behind_one = numbers({64 * 68 + 1}, mx::bfloat16, 90);
  tensors.operands.back() =
      evaluated(mx::reshape(mx::slice(behind_one, {1}, {64 * 68 + 1}), {64, 68}));
  check_against_cpu(tensors);
}

TEST_CASE("Adafactor's means of many tiles are summed by several threads") {
  for (const bool first_moment : {false, true}) {
    Tensors tensors{first_moment};
    tensors.add({3, 1300}, true, single);
    tensors.add({1300, 3}, true, single);
    check_against_cpu(tensors);
  }
}

TEST_CASE("Adafactor of more tensors than a table holds") {
  Tensors tensors{false};
  for (int i = 0; i < 179; ++i) {
    tensors.add({5}, false, single);
  }
  check_against_cpu(tensors);
}

TEST_CASE("Adafactor's gradients are scaled, and a step that is not finite is skipped") {
  for (const float value : {0.3f, INFINITY, NAN}) {
    Scalars scalars;
    scalars.scale = GradientScale{mx::array(value), true};
    check_against_cpu(tensors_of_all_sizes(true, halves), scalars);
    check_against_cpu(with_transposed_gradients(false, single), scalars);
  }
}

TEST_CASE("elements of Adafactor's scaled gradients are clipped") {
  Scalars scalars;
  scalars.scale = GradientScale{mx::array(0.3f), true, mx::array(0.1f)};
  check_against_cpu(tensors_of_all_sizes(true, halves), scalars);
  check_against_cpu(with_transposed_gradients(false, single), scalars);
}

TEST_CASE("Adafactor overwrites what nobody else holds") {
  for (const float value : {0.3f, INFINITY}) {
    Scalars scalars;
    scalars.scale = GradientScale{mx::array(value), true};
    for (const auto make : {tensors_of_all_sizes, with_transposed_gradients}) {
      Tensors tensors = make(true, single);
      const auto expected = run_on_cpu(tensors, scalars);
      std::vector<const void*> buffers;
      for (size_t i = 0, tensor = 0; i < tensors.operands.size(); ++tensor) {
        const size_t results = 3 + (tensor >= tensors.unfactored);
        for (size_t k = 0; k < results; ++k) {
          buffers.push_back(tensors.operands[i + k].buffer().ptr());
        }
        i += results + 1;
      }
      const auto got = run(std::move(tensors), scalars);
      REQUIRE(got.size() == buffers.size());
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK((got[i].size() == 0 || got[i].buffer().ptr() == buffers[i]));
      }
      check_equal(got, expected, {.relative = error});
      check_clean();
    }
  }
}
