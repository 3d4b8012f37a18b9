// The optimizer's state, saved, loaded and refused.
#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "file.h"
#include "mlx/mlx.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

TEST_CASE("a training goes on from its checkpoint as if it had not stopped") {
  for (const auto& [name, hypers] : optimizers::all()) {
    CAPTURE(name);
    const File file("resume");
    auto named = parameters();
    Optimizer optimizer(named, hypers, 0.25);
    const mlx_opt::Clip clip = {.max_norm = 1.0, .skip_nonfinite = true};
    optimizer.update(named, gradients(), clip);
    optimizer.update(named, {{"bias", mx::full({3}, INFINITY)}}, clip);
    optimizer.save(file.path());
    auto copies = named;
    Optimizer resumed(copies, hypers, 0.5);
    resumed.load(file.path());
    CHECK(equal(resumed.state(), optimizer.state()));
    CHECK(resumed.step() == 1);
    CHECK(resumed.skipped() == 1);
    optimizer.update(named, gradients(), clip);
    resumed.update(copies, gradients(), clip);
    CHECK(equal(named, copies));
    CHECK(equal(resumed.state(), optimizer.state()));
  }
}

TEST_CASE("what clipping leaves in the state is there only once asked for") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::Lion{}, 0.1);
  const auto plain = optimizer.state();
  CHECK_FALSE(plain.contains("mlx_opt.grad_norm"));
  CHECK_FALSE(plain.contains("mlx_opt.skipped"));
  optimizer.update(named, gradients(), {.max_norm = 1.0});
  CHECK(optimizer.state().contains("mlx_opt.grad_norm"));
  CHECK_FALSE(optimizer.state().contains("mlx_opt.skipped"));
  optimizer.update(named, {{"bias", mx::full({3}, NAN)}}, {.skip_nonfinite = true});
  CHECK(optimizer.state().contains("mlx_opt.skipped"));
  optimizer.set_state(plain);
  CHECK(equal(optimizer.state(), plain));
  CHECK(optimizer.step() == 0);
  CHECK(optimizer.skipped() == 0);
}

TEST_CASE("what Python's telemetry leaves in the state is ignored") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::Lion{}, 0.1);
  const auto plain = optimizer.state();
  auto state = plain;
  state.emplace("mlx_opt.telemetry.0", mx::ones({1, 2}));
  optimizer.set_state(state);
  CHECK(equal(optimizer.state(), plain));
}

TEST_CASE("a state that does not belong is refused by name, and nothing changes") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1);
  optimizer.update(named, gradients());
  const auto before = optimizer.state();
  const auto message = [&](const std::string& key, const mx::array* instead) {
    auto state = before;
    state.erase(key);
    if (instead) {
      state.emplace(key, *instead);
    }
    return message_of([&] { optimizer.set_state(state); });
  };
  const auto halves = mx::ones({2}), wrong = mx::ones({2, 3}, mx::int32), real = mx::array(1.5f);
  CHECK(message("step", nullptr) == "mlx_opt: the state has no \"step\"");
  CHECK(
      message("mlx_opt.skipped", &real) ==
      "mlx_opt: the state's \"mlx_opt.skipped\" must be one integer, got float32 of shape ()");
  CHECK(
      message("mlx_opt.grad_norm", &halves) ==
      "mlx_opt: the state's \"mlx_opt.grad_norm\" must be one real number, got float32 of shape "
      "(2,)");
  CHECK(message("bias.v", nullptr) == "mlx_opt: the state has no \"bias.v\"");
  CHECK(
      message("layers.0.weight.m", &halves) ==
      "mlx_opt: layers.0.weight.m: state (2,), expected (2, 3)");
  CHECK(
      message("layers.0.weight.m", &wrong) ==
      "mlx_opt: layers.0.weight.m: state must be float32, float16 or bfloat16, got int32");
  CHECK(
      message("step", &real) ==
      "mlx_opt: the state's \"step\" must be one integer, got float32 of shape ()");
  CHECK(
      message("learning_rate", &halves) ==
      "mlx_opt: the state's \"learning_rate\" must be one real number, got float32 of shape (2,)");
  CHECK(
      message("scale.m", &halves) ==
      "mlx_opt: the state's \"scale.m\" belongs to no parameter of this optimizer");
  CHECK(equal(optimizer.state(), before));
}

TEST_CASE("a damaged file is refused, wherever it is cut") {
  const File good("good"), bad("bad");
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1);
  optimizer.update(named, gradients());
  optimizer.save(good.path());
  optimizer.update(named, gradients());
  const auto before = optimizer.state();
  const std::string bytes = good.bytes();
  REQUIRE(bytes.size() > 300);
  for (size_t size : {size_t{0}, size_t{4}, size_t{8}, size_t{100}, bytes.size() - 1}) {
    CAPTURE(size);
    bad.write(bytes.substr(0, size));
    CHECK_THROWS_AS(optimizer.load(bad.path()), std::runtime_error);
  }
  std::string flipped = bytes;
  flipped[8] = 'x';
  bad.write(flipped);
  const std::string message = message_of([&] { optimizer.load(bad.path()); });
  CHECK(message.find("mlx_opt: cannot load " + bad.path() + ": ") == 0);
  CHECK_THROWS_AS(optimizer.load("/nowhere/state.safetensors"), std::runtime_error);
  CHECK_THROWS_AS(optimizer.save("/nowhere/state.safetensors"), std::runtime_error);
  CHECK(equal(optimizer.state(), before));
  optimizer.load(good.path());
  CHECK(optimizer.step() == 1);
}
