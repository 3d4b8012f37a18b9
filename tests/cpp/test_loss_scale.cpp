// The loss scale of the optimizer over named parameters.
#include <doctest/doctest.h>

#include <cmath>

#include "mlx/mlx.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

namespace {

NamedArrays times(const NamedArrays& arrays, float factor) {
  NamedArrays products;
  for (const auto& [name, x] : arrays) {
    products.emplace(name, x * mx::array(factor));
  }
  return products;
}

float scale_of(const Optimizer& optimizer) {
  return optimizer.loss_scale()->item<float>();
}

NamedArrays infinite() {
  return {{"bias", mx::full({3}, INFINITY)}};
}

} // namespace

TEST_CASE("a step divides the gradients by the loss scale, before all else") {
  for (const mlx_opt::Clip& clip : {mlx_opt::Clip{}, {.max_norm = 0.5}, {.max_value = 0.125}}) {
    auto named = parameters(), expected = parameters();
    Optimizer optimizer(named, mlx_opt::SGD{}, 0.5), plain(expected, mlx_opt::SGD{}, 0.5);
    CHECK_FALSE(optimizer.loss_scale());
    optimizer.set_loss_scale(1024);
    optimizer.accumulate(times(gradients(), 1024), 2.0);
    optimizer.update(named, times(gradients(), 1024), clip, {}, 2.0);
    const mlx_opt::Clip skips{clip.max_norm, clip.max_value, true};
    plain.update(expected, times(gradients(), 0.5), skips);
    CHECK(equal(named, expected));
    CHECK(mx::array_equal(*optimizer.grad_norm(), *plain.grad_norm()).item<bool>());
    CHECK(scale_of(optimizer) == 1024);
  }
}

TEST_CASE("the loss scale is halved by skipped steps, and doubled after 2000 others") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::SGD{}, 0.0);
  optimizer.set_loss_scale(std::ldexp(1.0, -23));
  const NamedArrays before = named;
  for (int i = 0; i < 3; ++i) {
    optimizer.update(named, infinite());
    CHECK(scale_of(optimizer) == std::ldexp(1.0f, -24)); // no less
  }
  CHECK(optimizer.step() == 0);
  CHECK(optimizer.skipped() == 3);
  CHECK(equal(named, before));
  optimizer.set_loss_scale(std::ldexp(1.0, 23));
  NamedArrays state = optimizer.state();
  for (int i = 0; i < 2; ++i) { // to 2^24, and no more
    state.insert_or_assign("mlx_opt.steps_at_loss_scale", mx::array(std::uint32_t{1998}));
    state.insert_or_assign("mlx_opt.loss_scale", *optimizer.loss_scale());
    optimizer.set_state(state);
    const float scale = scale_of(optimizer);
    optimizer.update(named, gradients());
    CHECK(scale_of(optimizer) == scale);
    optimizer.update(named, gradients());
    CHECK(scale_of(optimizer) == std::ldexp(1.0f, 24));
    const mx::array steps = optimizer.state().at("mlx_opt.steps_at_loss_scale");
    CHECK(steps.dtype() == mx::uint32);
    CHECK(mx::array(steps).item<std::uint32_t>() == 0);
  }
}

TEST_CASE("the loss scale is in the state, and may be turned off") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::SGD{}, 0.1), other(named, mlx_opt::SGD{}, 0.1);
  CHECK_FALSE(optimizer.state().contains("mlx_opt.loss_scale"));
  optimizer.set_loss_scale(2);
  optimizer.update(named, gradients());
  other.set_state(optimizer.state());
  CHECK(scale_of(other) == 2);
  CHECK(equal(other.state(), optimizer.state()));
  NamedArrays state = optimizer.state();
  state.erase("mlx_opt.steps_at_loss_scale"); // as Python's before the first step
  other.set_state(state);
  CHECK(other.state().contains("mlx_opt.steps_at_loss_scale"));
  optimizer.set_loss_scale(std::nullopt);
  CHECK_FALSE(optimizer.loss_scale());
  CHECK_FALSE(optimizer.state().contains("mlx_opt.steps_at_loss_scale"));
  for (const double wrong : {0.0, -1.0, double{NAN}, std::ldexp(1.0, 25)}) {
    CHECK_THROWS_AS(optimizer.set_loss_scale(wrong), std::invalid_argument);
  }
  CHECK(message_of([&] {
          optimizer.set_loss_scale(0);
        }) == "mlx_opt: loss_scale: expected a number from 2^-24 to 2^24, got 0.000000");
  state.insert_or_assign("mlx_opt.loss_scale", mx::ones({2}));
  CHECK(
      message_of([&] { other.set_state(state); }) ==
      "mlx_opt: the state's \"mlx_opt.loss_scale\" must be one real number, got float32 of shape "
      "(2,)");
}
