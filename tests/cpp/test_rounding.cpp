// Stochastic rounding of the optimizer over named parameters.
#include <doctest/doctest.h>

#include <cmath>

#include "mlx/mlx.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

namespace {

const std::string weight = "layers.0.weight";

NamedArrays ramp() {
  const mx::array w = mx::arange(8) / mx::array(8.0f) + mx::array(0.5f);
  return {
      {"bias", mx::ones({3}, mx::bfloat16)},
      {weight, mx::reshape(mx::astype(w, mx::bfloat16), {2, 4})}};
}

// Three steps, with gradients that depend on the step.
NamedArrays after_three_steps(Optimizer& optimizer, NamedArrays parameters) {
  for (int step = 1; step <= 3; ++step) {
    optimizer.update(
        parameters,
        {{"bias", mx::full({3}, -0.25f, mx::bfloat16)},
         {weight, mx::full({2, 4}, 0.5f * static_cast<float>(step), mx::bfloat16)}});
    mx::eval(mlx_opt::values(parameters));
    mx::eval(optimizer.values());
  }
  return parameters;
}

bool has_bits(const mx::array& x, std::initializer_list<int> bits) {
  const mx::array expected(bits.begin(), {static_cast<int>(bits.size())}, mx::uint16);
  return mx::array_equal(mx::flatten(mx::view(x, mx::uint16)), expected).item<bool>();
}

} // namespace

// The numbers are those of Python's AdamW(1e-3, stochastic_rounding=True, rounding_seed=7) and
// Muon(1e-3, stochastic_rounding=True, rounding_seed=2**63 + 5).
TEST_CASE("the random bits are Python's") {
  Optimizer adamw(ramp(), mlx_opt::AdamW{}, 1e-3, {}, {.rounding_seed = 7});
  NamedArrays named = after_three_steps(adamw, ramp());
  CHECK(
      has_bits(named.at(weight), {0x3efb, 0x3f1c, 0x3f3d, 0x3f5d, 0x3f7d, 0x3f8d, 0x3f9e, 0x3fae}));
  CHECK(has_bits(named.at("bias"), {0x3f81, 0x3f82, 0x3f81}));
  CHECK(has_bits(
      adamw.state().at(weight + ".m"),
      {0x3e90, 0x3e8f, 0x3e8f, 0x3e90, 0x3e90, 0x3e8f, 0x3e8f, 0x3e90}));
  CHECK(has_bits(adamw.state().at("bias.v"), {0x3943, 0x3944, 0x3945}));
  const std::uint64_t seed = (std::uint64_t{1} << 63) + 5;
  Optimizer muon(ramp(), mlx_opt::Muon{}, 1e-3, {}, {.rounding_seed = seed});
  named = after_three_steps(muon, ramp());
  CHECK(has_bits(
      muon.state().at(weight + ".v"),
      {0x3e15, 0x3e16, 0x3e16, 0x3e16, 0x3e16, 0x3e16, 0x3e16, 0x3e16}));
  CHECK(has_bits(muon.state().at("bias.v"), {0xbd0d, 0xbd0d, 0xbd0c}));
}

TEST_CASE("they depend on seed, name and step, and not on the parameters that a step has") {
  const auto options = [](std::uint64_t seed) { return mlx_opt::Options{.rounding_seed = seed}; };
  const mx::array ones = mx::ones({4096}, mx::bfloat16);
  const auto after = [&](std::uint64_t seed, NamedArrays named) {
    Optimizer optimizer(named, mlx_opt::SGD{}, 1e-3, {}, options(seed));
    optimizer.update(named, NamedArrays(named));
    return named;
  };
  const mx::array a = after(0, {{"a", ones}}).at("a");
  const auto same = [&](const mx::array& b) { return mx::array_equal(a, b).item<bool>(); };
  CHECK(same(after(0, {{"0", ones}, {"a", ones}}).at("a")));
  CHECK_FALSE(same(after(1, {{"a", ones}}).at("a")));
  CHECK_FALSE(same(after(0, {{"b", ones}}).at("b")));
  CHECK(mx::mean(mx::astype(a, mx::float32)).item<float>() == doctest::Approx(0.999).epsilon(1e-4));
  NamedArrays named = {{"a", ones}};
  Optimizer first(named, mlx_opt::SGD{}, 1e-3, {}, options(0)), resumed = first;
  first.update(named, {{"a", ones}});
  resumed.set_state(first.state());
  NamedArrays again = named;
  first.update(named, {{"a", ones}});
  resumed.update(again, {{"a", ones}});
  CHECK(equal(named, again));
}

TEST_CASE("parameters keep their dtypes, a skipped step rounds nothing") {
  for (const auto& [name, hypers] : optimizers::all()) {
    CAPTURE(name);
    NamedArrays named = ramp();
    Optimizer optimizer(named, hypers, 0.1, {}, {.rounding_seed = 3});
    const NamedArrays before = named, state = optimizer.state();
    optimizer.update(named, {{"bias", mx::full({3}, NAN)}}, {.skip_nonfinite = true});
    CHECK(equal(named, before));
    optimizer.update(named, {{"bias", mx::ones({3})}, {weight, mx::ones({2, 4})}});
    for (const auto& [parameter, x] : named) {
      CHECK(x.dtype() == mx::bfloat16);
    }
    CHECK_FALSE(equal(named, before));
  }
}

TEST_CASE("stochastic rounding does not go with master weights") {
  const mlx_opt::Options options{
      .master_weights = mlx_opt::MasterWeights::float32, .rounding_seed = 1};
  CHECK(
      message_of([&] { Optimizer(ramp(), mlx_opt::Lion{}, 0.1, {}, options); }) ==
      "mlx_opt Lion: stochastic rounding does not go with master weights, which lose nothing");
}
