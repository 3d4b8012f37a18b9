// Adafactor's host code, from the primitive's eval_gpu to the encoder, against a fake of Metal.
#include <cmath>
#include <numeric>

#include "mlx_opt/backend/find.h"
#include "tensors.h"

using namespace mlx_opt;

namespace {

// The error that float32 may leave in a difference of numbers up to 4.
constexpr double least = 2.4e-7;

const std::vector<Scalar> hypers = {1e-30, 1e-3, 1.0, -0.8, 0.9, 0.1, 1.0, 1.0, 0.0};

// The operands of a step, and how they are divided.
struct Operands {
  std::vector<mx::array> arrays;
  size_t unfactored = 0;
  bool first_moment = true;

  // Arrays without other holders, for tensors of these shapes, those of fewer than two dimensions
  // first.
  Operands(const std::vector<mx::Shape>& shapes, mx::Dtype dtype, bool moment = true)
      : first_moment(moment) {
    const auto add = [&](mx::Shape shape) {
      arrays.push_back(numbers(std::move(shape), dtype, static_cast<int>(arrays.size())));
    };
    for (const auto& shape : shapes) {
      add(shape);
      if (shape.size() < 2) {
        ++unfactored;
        add(shape);
      } else {
        mx::Shape column(shape.begin(), shape.end() - 2);
        column.push_back(shape.back());
        add(mx::Shape(shape.begin(), shape.end() - 1));
        add(column);
      }
      if (moment) {
        add(shape);
      }
      add(shape);
    }
    mx::eval(arrays);
  }
};

std::vector<mx::array> graph_of(
    Operands operands,
    mx::Stream stream,
    const Scalars& scalars,
    const std::vector<Scalar>& given = hypers) {
  return adafactor(
      std::move(operands.arrays),
      operands.unfactored,
      operands.first_moment,
      given,
      scalars.learning_rate,
      scalars.step,
      stream,
      scalars.scale);
}

std::vector<mx::array> run(Operands operands, const Scalars& scalars = {}) {
  return evaluate_on_gpu(graph_of(std::move(operands), gpu_stream, scalars));
}

std::vector<mx::array> run_on_cpu(Operands operands, const Scalars& scalars = {}) {
  operands.arrays = copies_of(operands.arrays);
  auto results = graph_of(std::move(operands), mx::default_stream(mx::Device::cpu), scalars);
  mx::eval(results);
  return results;
}

void check_against_cpu(const Operands& operands, const Scalars& scalars = {}) {
  mx::set_default_device(mx::Device::cpu);
  fake::begin();
  const auto expected = run_on_cpu(operands, scalars);
  check_equal(run(operands, scalars), expected, {.absolute = least});
  check_clean();
}

mx::array transposed(const mx::Shape& shape, mx::Dtype dtype) {
  mx::Shape other = shape;
  std::swap(other[other.size() - 1], other[other.size() - 2]);
  return mx::swapaxes(numbers(other, dtype, 90), -1, -2);
}

} // namespace

TEST_CASE("Adafactor makes of its operands what it makes of them on the CPU") {
  for (const bool moment : {false, true}) {
    check_against_cpu(
        {{{7}, {}, {0}, {1}, {5000}, {64, 65}, {3, 0}, {0, 3}, {2, 3, 40}, {300, 1}, {1, 1}},
         mx::float32,
         moment});
  }
}

TEST_CASE("Adafactor: matrices whose sums are of many parts") {
  check_against_cpu({{{3, 2500}, {700, 300}}, mx::float32});
}

TEST_CASE("Adafactor: halves and mixes of storages") {
  for (const mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    check_against_cpu({{{7}, {40, 65}}, dtype});
  }
  Operands operands({{9}, {31, 33}}, mx::bfloat16);
  for (const size_t k : {1, 2, 5, 7}) {
    operands.arrays[k] = mx::astype(operands.arrays[k], k == 5 ? mx::float16 : mx::float32);
  }
  mx::eval(operands.arrays);
  check_against_cpu(operands);
}

TEST_CASE("Adafactor: gradients that lie transposed") {
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    Operands operands({{40, 36}, {37, 70}, {3, 20, 41}, {300, 600}}, dtype);
    for (size_t g = 4; g < operands.arrays.size(); g += 5) {
      operands.arrays[g] = transposed(operands.arrays[g].shape(), dtype);
    }
    mx::eval(operands.arrays);
    check_against_cpu(operands);
    for (const auto& dispatch : fake::log().dispatches) {
      CHECK(dispatch.kernel.find("strided") == std::string::npos);
    }
  }
}

TEST_CASE("Adafactor: operands of any layout") {
  Operands operands({{4100}, {50}, {40, 36}, {5, 6, 7}, {40, 36}, {40, 36}}, mx::float32);
  auto& arrays = operands.arrays;
  const auto at = [&](size_t matrix, size_t k) -> mx::array& { return arrays[8 + 5 * matrix + k]; };
  arrays[3] = mx::slice(numbers({4103}, mx::float32, 92), {3}, {4103}); // an odd offset
  arrays[5] = mx::slice(numbers({100}, mx::float32, 93), {0}, {100}, {2});
  at(0, 4) = mx::broadcast_to(mx::array(0.5f), {40, 36});
  at(1, 4) = mx::transpose(numbers({7, 5, 6}, mx::float32, 91), {1, 2, 0});
  at(2, 0) = transposed({40, 36}, mx::float32);
  at(3, 1) = mx::slice(numbers({80}, mx::float32, 94), {0}, {80}, {2});
  at(3, 3) = transposed({40, 36}, mx::float32);
  mx::eval(arrays);
  check_against_cpu(operands);
}

TEST_CASE("Adafactor: more dimensions than the kernels have are refused before a change") {
  const mx::Shape shape(18, 2);
  Operands operands({shape}, mx::float32);
  std::vector<int> axes(18);
  std::iota(axes.rbegin(), axes.rend(), 0);
  operands.arrays[4] = mx::transpose(operands.arrays[4], axes);
  mx::eval(operands.arrays);
  const auto before = copies_of(operands.arrays);
  fake::begin();
  CHECK_THROWS_WITH_AS(run(operands), doctest::Contains("mx.contiguous"), std::runtime_error);
  CHECK(fake::log().dispatches.empty());
  CHECK(mx::array_equal(operands.arrays[0], before[0]).item<bool>());
}

TEST_CASE("Adafactor: traced hyperparameters are read when the step runs") {
  std::vector<Scalar> traced;
  for (const Scalar& x : hypers) {
    traced.push_back(mx::array(static_cast<float>(std::get<double>(x))));
  }
  const Operands operands({{20}, {30, 40}}, mx::float32);
  fake::begin();
  const auto results = evaluate_on_gpu(graph_of(operands, gpu_stream, {}, traced));
  check_equal(results, run_on_cpu(operands));
  check_clean();
}

TEST_CASE("Adafactor: gradients are scaled, and a step whose scale is not finite is skipped") {
  for (const float value : {0.3f, INFINITY}) {
    Operands operands({{100}, {33, 31}, {40, 36}, {2, 3, 4}}, mx::bfloat16);
    operands.arrays[8] = transposed({33, 31}, mx::bfloat16);
    operands.arrays.back() = mx::transpose(numbers({4, 2, 3}, mx::bfloat16, 9), {1, 2, 0});
    mx::eval(operands.arrays);
    Scalars scalars;
    scalars.scale = GradientScale{mx::array(value), value == INFINITY};
    check_against_cpu(operands, scalars);
    scalars.scale->max_value = mx::array(0.1f);
    check_against_cpu(operands, scalars);
  }
}

TEST_CASE("Adafactor over nothing encodes nothing") {
  fake::begin();
  const auto results = run({{{0}}, mx::float32});
  CHECK(results[0].shape() == mx::Shape{0});
  CHECK(fake::log().dispatches.empty());
  check_clean();
}

TEST_CASE("Adafactor writes in place what nobody else holds") {
  Operands operands({{7}, {70, 30}}, mx::float32);
  std::vector<const void*> buffers;
  for (const size_t k : {0, 1, 2, 4, 5, 6, 7}) {
    buffers.push_back(operands.arrays[k].buffer().ptr());
  }
  const auto expected = run_on_cpu(operands);
  fake::begin();
  const auto results = run(std::move(operands));
  REQUIRE(results.size() == buffers.size());
  for (size_t i = 0; i < results.size(); ++i) {
    CHECK(results[i].buffer().ptr() == buffers[i]);
  }
  check_equal(results, expected);
  check_clean();
}

TEST_CASE("Adafactor may write the parameter where its gradient lay") {
  Operands operands({{70, 30}}, mx::float32);
  const mx::array held = operands.arrays[0];
  const auto before = copies_of({held})[0];
  const void* gradient = operands.arrays[4].buffer().ptr();
  const auto expected = run_on_cpu(operands);
  fake::begin();
  const auto results = run(std::move(operands));
  CHECK(results[0].buffer().ptr() == gradient);
  CHECK(mx::array_equal(held, before).item<bool>());
  check_equal(results, expected);
  check_clean();
}

TEST_CASE("Adafactor: one barrier a pass, whatever the tensors, and none within a pass") {
  Operands operands({{100}, {200}, {5000}, {64, 65}, {40, 300}, {40, 36}}, mx::float32);
  operands.arrays.back() = transposed({40, 36}, mx::float32);
  mx::eval(operands.arrays);
  fake::begin();
  const auto results = run(std::move(operands));
  const auto& dispatches = fake::log().dispatches;
  // prepare; two vectors of a chunk; squares of the rest; means and the update's squares of the
  // matrices; rates and update.
  CHECK(dispatches.size() == 1 + 2 + 4 + 3 + 3 + 4 + 4);
  CHECK(fake::log().barriers == 5);
  check_clean();
}

TEST_CASE("Adafactor lets go of what it has in its hands when it is done") {
  const Operands operands({{6, 5}}, mx::float32, false);
  std::vector<mx::allocator::Buffer> outputs;
  for (size_t k = 0; k < 3; ++k) {
    auto x = operands.arrays[k];
    outputs.push_back(x.buffer());
  }
  const Scalars scalars;
  auto inputs = operands.arrays;
  inputs.push_back(scalars.step);
  inputs.push_back(scalars.learning_rate);
  GroupSources sources{{}, {}, true, true};
  for (const Scalar& x : hypers) {
    sources.hypers.push_back(std::get<double>(x));
  }
  const StepSpec spec{Rule::Adafactor, {{0, 3}, {1, 4}}, {}, {sources}};
  const std::vector<mx::Dtype> dtypes(3, mx::float32);
  auto keep_alive = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = keep_alive;
  fake::begin();
  const auto* backend = gpu::find_backend().backend;
  backend->prepare(spec, refs_to(inputs), dtypes, gpu_stream, LaunchMode::whole)
      ->enqueue(outputs, std::move(keep_alive));
  CHECK(watched.expired());
  backend->wait_for_turn(gpu_stream);
  check_clean();
}
