// States in codes of 8 bits: the codes, and the optimizer that has them.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdio>

#include "mlx/mlx.h"
#include "mlx_opt/rules/codes.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

namespace {

const mlx_opt::Options int8{.state_dtypes = {.all = mx::int8}};

NamedArrays large(float value) {
  return {{"bias", mx::full({3}, value)}, {"weight", mx::full({64, 65}, value)}};
}

} // namespace

TEST_CASE("every code is decoded and encoded as itself") {
  using namespace mlx_opt::portable;
  for (float scale : {1e-27f, 1.0f, 3.3f, 0x1p125f}) {
    const float reciprocal = reciprocal_of(scale);
    for (int code = -127; code <= 127; ++code) {
      CHECK(SignedCodes::encode(SignedCodes::decode(code, scale), reciprocal) == code);
    }
    for (int code = 0; code <= 255; ++code) {
      CHECK(UnsignedCodes::encode(UnsignedCodes::decode(code, scale), reciprocal) == code);
    }
    CHECK(SignedCodes::decode(-127, scale) == -scale);
    CHECK(UnsignedCodes::decode(255, scale) == scale);
  }
}

TEST_CASE("scales of blocks") {
  using namespace mlx_opt::portable;
  CHECK(scale_of_block(size_bits(-2.5f)) == 2.5f);
  CHECK(scale_of_block(size_bits(1e-39f)) == 0.0f);
  CHECK(std::isnan(scale_of_block(size_bits(INFINITY))));
  CHECK(std::isnan(scale_of_block(size_bits(-NAN))));
  CHECK(std::isnan(scale_of_block(size_bits(0x1p126f))));
  CHECK(scale_of_block(size_bits(0x1.fffffep125f)) == 0x1.fffffep125f);
}

TEST_CASE("an optimizer of codes") {
  auto named = large(1.0f), wide = large(1.0f);
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1, {}, int8), plain(wide, mlx_opt::AdamW{}, 0.1);
  const auto check = [&] {
    const NamedArrays state = optimizer.state();
    CHECK(state.at("weight.m").dtype() == mx::int8);
    CHECK(state.at("weight.v").dtype() == mx::uint8);
    CHECK(state.at("weight.m_scale").shape() == mx::Shape{65});
    CHECK(state.at("weight.v_scale").dtype() == mx::float32);
    CHECK(state.at("bias.m").dtype() == mx::float32); // of few elements
    CHECK_FALSE(state.contains("bias.m_scale"));
  };
  check();
  for (int step = 0; step < 3; ++step) {
    optimizer.update(named, large(0.25f));
    plain.update(wide, large(0.25f));
  }
  check();
  // All numbers of a block are its largest, which is exact.
  CHECK(mx::array_equal(named.at("weight"), wide.at("weight")).item<bool>());
  const std::string path = "codes.safetensors";
  optimizer.save(path);
  Optimizer other(named, mlx_opt::AdamW{}, 0.1, {}, int8);
  other.load(path);
  std::remove(path.c_str());
  CHECK(equal(other.state(), optimizer.state()));
}

TEST_CASE("codes of a wrong dtype and rules without codes are refused") {
  auto named = large(1.0f);
  Optimizer optimizer(named, mlx_opt::Lion{}, 0.1, {}, int8);
  NamedArrays state = optimizer.state();
  state.at("weight.m") = mx::zeros({64, 65});
  CHECK(message_of([&] {
          optimizer.set_state(state);
        }) == "mlx_opt: weight.m: state float32 (64, 65), expected int8 (64, 65)");
  state = optimizer.state();
  state.at("weight.m_scale") = mx::zeros({65}, mx::float16);
  CHECK(message_of([&] {
          optimizer.set_state(state);
        }) == "mlx_opt: weight.m_scale: state float16 (65,), expected float32 (65,)");
  const auto refusal = [&](const mlx_opt::Hyperparameters& hypers) {
    return message_of([&] { Optimizer(named, hypers, 0.1, {}, int8); });
  };
  CHECK(refusal(mlx_opt::Adagrad{}) == "mlx_opt Adagrad: there is no state that int8 can hold");
  CHECK(
      refusal(mlx_opt::RuleByName{"Lamb"}) ==
      "mlx_opt Lamb: a state in int8 is for rules that update each element by itself");
}
