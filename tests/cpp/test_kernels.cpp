// Every level that this machine can run, against double precision and against each other.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "mlx/types/half_types.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"
#include "mlx_opt/rules/registry.h"

using namespace mlx_opt;
using namespace mlx_opt::cpu;

namespace {

constexpr Scale as_it_is = {1.0f, std::numeric_limits<float>::infinity()};
constexpr float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, decay = 0.1f, lr = 0.01f;

uint16_t narrowed(Storage storage, float x) {
  uint16_t bits;
  if (storage == Storage::float16) {
    const mlx::core::float16_t half(x);
    std::memcpy(&bits, &half, sizeof bits);
  } else {
    const mlx::core::bfloat16_t half(x);
    std::memcpy(&bits, &half, sizeof bits);
  }
  return bits;
}

float widened(Storage storage, uint16_t bits) {
  if (storage == Storage::float16) {
    mlx::core::float16_t half;
    std::memcpy(&half, &bits, sizeof bits);
    return static_cast<float>(half);
  }
  mlx::core::bfloat16_t half;
  std::memcpy(&half, &bits, sizeof bits);
  return static_cast<float>(half);
}

// An operand's elements in its storage.
struct Values {
  Storage storage;
  std::vector<float> floats;
  std::vector<uint16_t> halves;

  Values(Storage storage, const std::vector<float>& values) : storage(storage) {
    for (float x : values) {
      if (storage == Storage::float32) {
        floats.push_back(x);
      } else {
        halves.push_back(narrowed(storage, x));
      }
    }
  }

  float operator[](size_t i) const {
    return storage == Storage::float32 ? floats[i] : widened(storage, halves[i]);
  }

  Operand operand() {
    void* data = storage == Storage::float32 ? static_cast<void*>(floats.data()) : halves.data();
    return {data, storage, nullptr};
  }
};

std::vector<float> random_values(size_t size, float low, float high, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(size);
  for (float& x : values) {
    x = uniform(engine);
  }
  return values;
}

// The bound on the rounding of a result near x: of the storage, and of float arithmetic.
double tolerance(Storage storage, double x) {
  const double unit = storage == Storage::float32   ? 0x1p-22
                      : storage == Storage::float16 ? 0x1p-10
                                                    : 0x1p-8;
  return std::abs(x) * unit + (storage == Storage::float16 ? 0x1p-24 : 1e-30);
}

void check_adamw(const Storage (&storage)[4], int64_t size) {
  Values w(storage[0], random_values(size, -1, 1, 1));
  Values m(storage[1], random_values(size, -1, 1, 2));
  Values v(storage[2], random_values(size, 0.01f, 1, 3));
  Values g(storage[3], random_values(size, -1, 1, 4));
  const Values old_w = w, old_m = m, old_v = v;
  const Operand operands[] = {w.operand(), m.operand(), v.operand(), g.operand()};
  const Tensor tensor{operands, operands};
  const float hypers[] = {
      beta1, 1 - beta1, 0, beta2, float(1 - 0.999), 0, eps, 1, 0, decay, 0, 0, 0, 1, 0};
  float scalars[max_scalars];
  const Kernel& adamw = kernel(Rule::AdamW);
  adamw.prepare(hypers, lr, 1, scalars);
  const int64_t middle = size / 128 * 64;
  adamw.run(tensor, middle, size, hypers, scalars, as_it_is, 1.0f);
  adamw.run(tensor, 0, middle, hypers, scalars, as_it_is, 1.0f);
  for (int64_t i = 0; i < size; ++i) {
    const double m1 = double(beta1) * old_m[i] + (1 - double(beta1)) * g[i];
    const double v1 = double(beta2) * old_v[i] + (1 - 0.999) * g[i] * g[i];
    const double w1 = old_w[i] - double(lr) * decay * old_w[i] - lr * m1 / (std::sqrt(v1) + eps);
    REQUIRE(std::abs(m[i] - m1) <= tolerance(storage[1], 1));
    REQUIRE(std::abs(v[i] - v1) <= tolerance(storage[2], v1));
    REQUIRE(std::abs(w[i] - w1) <= tolerance(storage[0], 1));
  }
}

} // namespace

TEST_CASE("all mixes of storage and all lengths of tail follow the formula") {
  const Storage all[] = {Storage::float32, Storage::float16, Storage::bfloat16};
  for (Storage a : all) {
    for (Storage b : all) {
      for (Storage c : all) {
        check_adamw({a, b, b, c}, 1000);
      }
    }
    for (int64_t size : {0, 1, 7, 8, 15, 16, 17, 31, 33, 255, 256, 257}) {
      check_adamw({a, a, a, a}, size);
    }
  }
}

TEST_CASE("a cube root is good to a few units in the last place, of the smallest numbers too") {
  using portable::cube_root;
  for (float x = 1e-45f; x < 3e38f; x = std::nextafter(x * 1.0371f, INFINITY)) {
    CAPTURE(x);
    const double exact = std::cbrt(double(x));
    REQUIRE(std::abs(cube_root(x) - exact) <= 0x1p-23 * exact);
  }
  CHECK(cube_root(std::numeric_limits<float>::max()) == doctest::Approx(6.9814636e12));
  CHECK(cube_root(0.0f) == 0.0f);
  CHECK(std::isinf(cube_root(INFINITY)));
  CHECK(std::isnan(cube_root(NAN)));
}

TEST_CASE("halves convert as MLX converts them, all of them") {
  const Kernel& sgd = kernel(Rule::SGD);
  const float hypers[3 * info(Rule::SGD).hypers] = {0, 1, 0};
  float scalars[max_scalars];
  sgd.prepare(hypers, 0, 1, scalars);
  for (Storage storage : {Storage::float16, Storage::bfloat16}) {
    constexpr int64_t count = 1 << 16;
    std::vector<uint16_t> halves(count);
    std::vector<float> floats(count), zeros(count, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      halves[i] = static_cast<uint16_t>(i);
    }
    const Operand in[] = {
        {halves.data(), storage, nullptr}, {zeros.data(), Storage::float32, nullptr}};
    const Operand out = {floats.data(), Storage::float32, nullptr};
    sgd.run({in, &out}, 0, count, hypers, scalars, as_it_is, 1.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float expected = widened(storage, halves[i]);
      if (std::isfinite(expected)) {
        REQUIRE(floats[i] == expected);
      } else {
        REQUIRE(!std::isfinite(floats[i]));
        REQUIRE(std::isnan(floats[i]) >= std::isnan(expected));
      }
    }
  }
}

TEST_CASE("floats round to halves as MLX rounds them") {
  const Kernel& sgd = kernel(Rule::SGD);
  const float hypers[3 * info(Rule::SGD).hypers] = {0, 1, 0};
  float scalars[max_scalars];
  sgd.prepare(hypers, 0, 1, scalars);
  std::mt19937 engine(7);
  constexpr int64_t count = 1 << 18;
  std::vector<float> floats(count), zeros(count, 0.0f);
  std::vector<uint16_t> halves(count);
  for (float& x : floats) {
    uint32_t bits = engine();
    bits = engine() % 4 ? bits : (bits & 0xffff8000) | 0x8000; // every fourth a tie
    std::memcpy(&x, &bits, sizeof x);
    x = std::isfinite(x) ? x : 1.0f;
  }
  for (Storage storage : {Storage::float16, Storage::bfloat16}) {
    const Operand in[] = {
        {floats.data(), Storage::float32, nullptr}, {zeros.data(), Storage::float32, nullptr}};
    const Operand out = {halves.data(), storage, nullptr};
    sgd.run({in, &out}, 0, count, hypers, scalars, as_it_is, 1.0f);
    for (int64_t i = 0; i < count; ++i) {
      REQUIRE(halves[i] == narrowed(storage, floats[i]));
    }
  }
}

TEST_CASE("a transposed gradient and a strided one give what a copy of them gives") {
  const int64_t rows = 83, columns = 301;
  for (Storage storage : {Storage::float32, Storage::float16, Storage::bfloat16}) {
    const auto values = random_values(rows * columns, -1, 1, 5);
    std::vector<float> transposed(values.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        transposed[c * rows + r] = values[r * columns + c];
      }
    }
    const int64_t shape[] = {rows, columns};
    const int64_t strides[] = {1, rows};
    const Layout layout{shape, strides, 2};
    Values straight(storage, values), transposed_values(storage, transposed);
    Values expected(Storage::float32, std::vector<float>(values.size(), 1.0f));
    Values result = expected;
    const float hypers[3 * info(Rule::SGD).hypers] = {0.5f, 0.5f, 0};
    float scalars[max_scalars];
    const Kernel& sgd = kernel(Rule::SGD);
    sgd.prepare(hypers, lr, 1, scalars);
    const Operand direct[] = {expected.operand(), straight.operand()};
    sgd.run({direct, direct}, 0, rows * columns, hypers, scalars, as_it_is, 1.0f);
    Operand in_panels[] = {result.operand(), transposed_values.operand()};
    in_panels[1].layout = &layout;
    REQUIRE(is_transposed(in_panels[1]));
    const Tensor tensor{in_panels, in_panels};
    sgd.run(tensor, 32 * columns, rows * columns, hypers, scalars, as_it_is, 1.0f);
    sgd.run(tensor, 0, 32 * columns, hypers, scalars, as_it_is, 1.0f);
    CHECK(result.floats == expected.floats);
  }
}
