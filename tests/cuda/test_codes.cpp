// States in codes of 8 bits, with the fake of CUDA: all results have the bits of the CPU's.
#include <cmath>
#include <limits>

#include "checks.h"

using namespace mlx_opt;
using namespace steps;

namespace {

struct Options {
  mx::Dtype dtype = mx::float32; // of parameter and gradient
  MasterWeights masters = MasterWeights::none;
  bool rounds = false;
  std::optional<GradientScale> scale = std::nullopt;
  Format last = Format::int8; // of the last slot
};

Program program_of(Rule rule, const Options& options) {
  Formats formats;
  for (const SlotInfo& slot : slots_of(rule)) {
    formats[slot.name] = slot.name == slots_of(rule).back().name ? options.last : Format::int8;
  }
  const Program program = Program(rule, false, nullptr, formats).with(options.masters);
  return options.rounds ? program.with_rounding(7) : program;
}

// Any codes and remainders, and numbers of both signs; scales are positive.
mx::array anything(const mx::Shape& shape, mx::Dtype dtype, int seed, bool is_positive = false) {
  const auto key = mx::random::key(seed);
  const auto integers = [&](int least, int end) {
    return evaluated(mx::random::randint(least, end, shape, dtype, key));
  };
  if (dtype == mx::int8) {
    return integers(-127, 128);
  }
  if (dtype == mx::uint8) {
    return integers(0, 256);
  }
  if (dtype == mx::uint16) {
    return integers(0, 1 << 16);
  }
  const auto x = mx::random::normal(shape, mx::float32, key);
  return evaluated(mx::astype(is_positive ? mx::abs(x) : x, dtype));
}

// Parameter, slots and gradient of each shape, of at least 4096 elements.
std::vector<mx::array> operands_of(
    Rule rule, const Options& options, const std::vector<mx::Shape>& shapes) {
  const Program program = program_of(rule, options);
  std::vector<mx::array> operands;
  for (const mx::Shape& shape : shapes) {
    operands.push_back(anything(shape, options.dtype, 1));
    const size_t kind = program.kind_of(operands.back());
    int seed = 2;
    for (const SlotInfo* slot : program.slots(kind)) {
      const bool is_scale = seed >= 2 + program.operands(kind) - 2 - program.scales(kind);
      const mx::Dtype dtype = slot_dtype(*slot, options.dtype);
      operands.push_back(anything(slot_shape(*slot, shape), dtype, seed++, is_scale));
    }
    operands.push_back(anything(shape, options.dtype, seed));
  }
  return operands;
}

void check_codes(Rule rule, const Options& options, std::vector<mx::array> operands) {
  const Program program = program_of(rule, options);
  const size_t kind = program.kind_of(operands[0]);
  std::vector<size_t> tensors(program.kinds());
  tensors[kind] = operands.size() / program.operands(kind);
  const auto run = [&](std::vector<mx::array> operands, mx::Stream stream) {
    const Scalars scalars;
    return finished(
        step(
            program,
            std::move(operands),
            tensors,
            sample_hypers(rule),
            scalars.learning_rate,
            scalars.step,
            stream,
            options.scale),
        stream);
  };
  const auto expected = run(copies_of(operands), mx::default_stream(mx::Device::cpu));
  const auto got = run(std::move(operands), fake::gpu_stream);
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i].dtype() == expected[i].dtype());
    CHECK(mx::array_equal(got[i], expected[i], true).item<bool>());
  }
  check_clean();
}

void check_codes(Rule rule, const Options& options, const std::vector<mx::Shape>& shapes) {
  check_codes(rule, options, operands_of(rule, options, shapes));
}

// An array that is not aligned to anything.
mx::array off(const mx::array& x) {
  const auto flat = mx::flatten(x);
  const auto longer = evaluated(mx::concatenate({mx::zeros({1}, x.dtype()), flat}));
  return evaluated(mx::reshape(mx::slice(longer, {1}, longer.shape()), x.shape()));
}

mx::array by_columns(const mx::array& x) {
  return evaluated(mx::transpose(mx::contiguous(mx::transpose(x))));
}

// Flat, transposed by tiles of which the last are not whole, transposed with blocks across rows,
// and of any layout.
std::vector<mx::array> operands_of_any_layout(Rule rule, const Options& options) {
  auto operands = operands_of(
      rule, options, {{4096}, {5000}, {128, 64}, {70, 128}, {65, 192}, {64, 65}, {5, 30, 40}});
  const size_t count = operands.size() / 7;
  for (const size_t tensor : {2, 3, 4, 5}) {
    auto& gradient = operands[(tensor + 1) * count - 1];
    gradient = by_columns(gradient);
  }
  operands[6 * count] =
      evaluated(mx::transpose(anything({40, 5, 30}, options.dtype, 91), {1, 2, 0}));
  return operands;
}

} // namespace

TEST_CASE("codes in any layout") {
  for (const mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    const Options options{dtype};
    check_codes(Rule::AdamW, options, operands_of_any_layout(Rule::AdamW, options));
  }
  check_codes(Rule::Lion, {}, operands_of_any_layout(Rule::Lion, {}));
}

TEST_CASE("codes of tensors that end anywhere in a block") {
  std::vector<mx::Shape> shapes;
  for (int size = 4096; size < 4096 + 64; ++size) {
    shapes.push_back({size});
  }
  check_codes(Rule::AdamW, {}, shapes);
  check_codes(Rule::Lion, {mx::bfloat16}, shapes);
}

TEST_CASE("codes that are not aligned") {
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    const Options options{dtype};
    const auto operands = operands_of_any_layout(Rule::AdamW, options);
    const size_t count = operands.size() / 7;
    for (size_t k = 0; k < count; ++k) {
      auto some = operands;
      for (size_t tensor = 0; tensor < 6; ++tensor) {
        auto& x = some[tensor * count + k];
        const bool is_transposed = k == count - 1 && tensor >= 2;
        x = is_transposed ? evaluated(mx::transpose(off(mx::transpose(x)))) : off(x);
      }
      check_codes(Rule::AdamW, options, some);
    }
  }
}

TEST_CASE("codes beside master weights") {
  for (const MasterWeights masters : {MasterWeights::float32, MasterWeights::remainder}) {
    const Options options{mx::bfloat16, masters};
    check_codes(Rule::AdamW, options, operands_of_any_layout(Rule::AdamW, options));
  }
}

TEST_CASE("codes of one slot beside numbers of another") {
  for (const Format last : {Format::float32, Format::bfloat16}) {
    Options options{mx::bfloat16};
    options.last = last;
    check_codes(Rule::AdamW, options, operands_of_any_layout(Rule::AdamW, options));
  }
}

TEST_CASE("codes beside a gradient of another dtype") {
  auto operands = operands_of_any_layout(Rule::AdamW, {mx::bfloat16});
  const size_t count = operands.size() / 7;
  for (size_t tensor = 0; tensor < 7; ++tensor) {
    auto& gradient = operands[(tensor + 1) * count - 1];
    gradient = evaluated(mx::astype(gradient, mx::float32));
  }
  check_codes(Rule::AdamW, {mx::bfloat16}, operands);
}

TEST_CASE("codes of a step that rounds stochastically") {
  const Options options{mx::bfloat16, MasterWeights::none, true};
  check_codes(Rule::AdamW, options, operands_of_any_layout(Rule::AdamW, options));
}

TEST_CASE("codes of a step that is scaled, clipped or skipped") {
  for (const float value : {0.3f, INFINITY}) {
    for (const bool rounds : {false, true}) {
      const GradientScale scale{mx::array(value), true, mx::array(0.1f)};
      const Options options{mx::bfloat16, MasterWeights::none, rounds, scale};
      check_codes(Rule::AdamW, options, operands_of_any_layout(Rule::AdamW, options));
    }
  }
}

TEST_CASE("every code, and blocks of every size") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float sizes[] = {
      0.0f,
      1e-45f,
      1e-39f,
      0x1p-126f,
      0x1.fp-126f,
      1e-30f,
      1.0f,
      3.0f,
      1e30f,
      0x1.fp125f,
      0x1p126f,
      3e38f,
      inf,
      -inf,
      NAN,
      -1.0f};
  const int count = std::size(sizes), size = 64 * count * 8;
  // Of each size a block of zeros but one, then one of any numbers.
  std::vector<float> gradient, scales;
  for (int i = 0; i < size; ++i) {
    const int block = i / 64;
    const bool has_size = i % 64 == block % 64;
    const float part = static_cast<float>(i * 7 % 64) / 64;
    gradient.push_back((has_size ? 1.0f : block % 2 ? part : 0.0f) * sizes[block / 2 % count]);
  }
  for (int block = 0; block < size / 64; ++block) {
    scales.push_back(sizes[block % count]);
  }
  for (const Rule rule : {Rule::AdamW, Rule::Lion}) {
    auto operands = operands_of(rule, {}, {{size}});
    const int slots = info(rule).slots;
    for (int k = 1; k <= slots; ++k) {
      operands[k] = mx::astype(mx::subtract(mx::arange(size), mx::array(127)), operands[k].dtype());
      operands[slots + k] = mx::array(scales.data(), {size / 64});
    }
    operands.back() = mx::array(gradient.data(), {size});
    mx::eval(operands);
    check_codes(rule, {}, operands);
    for (int k = 1; k <= slots; ++k) { // the size is that of the gradient alone
      operands[slots + k] = mx::zeros({size / 64});
    }
    mx::eval(operands);
    check_codes(rule, {}, operands);
  }
}
