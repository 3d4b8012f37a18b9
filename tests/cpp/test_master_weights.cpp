// Master weights of the optimizer over named parameters.
#include <doctest/doctest.h>

#include <cmath>
#include <utility>

#include "file.h"
#include "mlx/mlx.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::MasterWeights;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

namespace {

constexpr MasterWeights kinds[] = {MasterWeights::float32, MasterWeights::remainder};

NamedArrays in(mx::Dtype dtype, const NamedArrays& arrays) {
  NamedArrays converted;
  for (const auto& [name, x] : arrays) {
    converted.emplace(name, mx::astype(x, dtype));
  }
  return converted;
}

NamedArrays evaluated(NamedArrays arrays) {
  mx::eval(mlx_opt::values(arrays));
  return arrays;
}

const char* slot_of(MasterWeights masters) {
  return masters == MasterWeights::float32 ? "master" : "remainder";
}

} // namespace

TEST_CASE("master weights are those of a training in float32, bit by bit") {
  for (const auto& [name, hypers] : optimizers::all()) {
    for (const MasterWeights masters : kinds) {
      CAPTURE(name);
      CAPTURE(slot_of(masters));
      auto named = in(mx::bfloat16, parameters()), wide = parameters();
      Optimizer optimizer(named, hypers, 1e-3, {}, {.master_weights = masters});
      Optimizer plain(wide, hypers, 1e-3);
      for (int step = 0; step < 5; ++step) {
        // Where everything is evaluated the fused step overwrites its operands.
        mx::eval(optimizer.values());
        named = evaluated(std::move(named));
        optimizer.update(named, evaluated(in(mx::bfloat16, gradients())));
        plain.update(wide, gradients());
      }
      CHECK(equal(optimizer.master_parameters(named), wide));
      const NamedArrays state = optimizer.state();
      for (const auto& [key, x] : plain.state()) {
        CHECK(state.at(key).dtype() == x.dtype());
        CHECK(mx::array_equal(state.at(key), x, true).item<bool>());
      }
      for (const auto& [parameter, x] : named) {
        CHECK(x.dtype() == mx::bfloat16);
        CHECK(state.contains(parameter + "." + slot_of(masters)));
      }
      CHECK(state.size() == plain.state().size() + named.size());
    }
  }
}

TEST_CASE("a step of a parameter in bfloat16 is not lost in its master") {
  for (const MasterWeights masters : kinds) {
    NamedArrays named = {{"w", mx::ones({1}, mx::bfloat16)}};
    Optimizer optimizer(named, mlx_opt::SGD{}, 1e-3, {}, {.master_weights = masters});
    for (int step = 0; step < 100; ++step) {
      optimizer.update(named, {{"w", mx::ones({1}, mx::bfloat16)}});
    }
    CHECK(mx::astype(named.at("w"), mx::float32).item<float>() == 0.8984375f);
  }
}

TEST_CASE("a parameter that something else writes is the new weight") {
  NamedArrays named = {{"w", mx::ones({3}, mx::bfloat16)}};
  Optimizer optimizer(named, mlx_opt::SGD{}, 1e-3, {}, {.master_weights = MasterWeights::float32});
  const NamedArrays g = {{"w", mx::ones({3}, mx::bfloat16)}};
  optimizer.update(named, g);
  named.at("w") = mx::array({1.0f, 2.0f, 1.0f}, mx::bfloat16); // the first and last as they were
  const auto weights = optimizer.master_parameters(named);
  const float kept = 1.0f - 1e-3f, written = 2.0f;
  CHECK(mx::array_equal(weights.at("w"), mx::array({kept, written, kept})).item<bool>());
  optimizer.update(named, g);
  CHECK(mx::array_equal(
            optimizer.state().at("w.master"),
            mx::array({kept - 1e-3f, written - 1e-3f, kept - 1e-3f}))
            .item<bool>());
}

TEST_CASE("a parameter that something else writes keeps its remainder") {
  NamedArrays named = {{"w", mx::ones({2}, mx::bfloat16)}};
  Optimizer optimizer(
      named, mlx_opt::SGD{}, 1e-3, {}, {.master_weights = MasterWeights::remainder});
  optimizer.update(named, {{"w", mx::ones({2}, mx::bfloat16)}});
  named.at("w") = mx::array({2.0f, 0.0f}, mx::bfloat16);
  const mx::array w = optimizer.master_parameters(named).at("w");
  CHECK(mx::array_equal(mx::astype(w, mx::bfloat16), named.at("w")).item<bool>());
  mx::eval(w);
  CHECK(w.data<float>()[0] != 2.0f);
}

TEST_CASE("other parameters and frozen ones have no master weights") {
  NamedArrays named = {
      {"half", mx::ones({2}, mx::float16)},
      {"still", mx::ones({2}, mx::bfloat16)},
      {"wide", mx::ones({2})}};
  Optimizer optimizer(
      named,
      mlx_opt::Lion{},
      0.1,
      {{.match = {"still"}, .frozen = true}},
      {.master_weights = MasterWeights::float32});
  NamedArrays state = optimizer.state();
  CHECK(state.contains("half.master"));
  CHECK_FALSE(state.contains("wide.master"));
  CHECK_FALSE(state.contains("still.master"));
  CHECK(std::isnan(mx::take(state.at("half.master"), 0).item<float>())); // begins as the parameter
  const NamedArrays weights = optimizer.master_parameters(named);
  CHECK(weights.size() == 3);
  for (const auto& [name, weight] : weights) {
    CHECK(weight.dtype() == mx::float32);
    CHECK(mx::array_equal(weight, mx::ones({2})).item<bool>());
  }
}

TEST_CASE("master weights in a checkpoint") {
  for (const MasterWeights masters : kinds) {
    const File file("masters");
    const mlx_opt::Options options{.master_weights = masters};
    auto named = in(mx::bfloat16, parameters());
    Optimizer optimizer(named, mlx_opt::AdamW{}, 1e-3, {}, options);
    optimizer.update(named, in(mx::bfloat16, gradients()));
    optimizer.save(file.path());
    auto copies = named;
    Optimizer resumed(copies, mlx_opt::AdamW{}, 1e-3, {}, options);
    resumed.load(file.path());
    for (Optimizer* each : {&optimizer, &resumed}) {
      each->update(each == &resumed ? copies : named, in(mx::bfloat16, gradients()));
    }
    CHECK(equal(named, copies));
    CHECK(equal(resumed.state(), optimizer.state()));
    // One without its masters can be completed by those of a new optimizer.
    Optimizer plain(copies, mlx_opt::AdamW{}, 1e-3);
    plain.update(copies, in(mx::bfloat16, gradients()));
    NamedArrays state = plain.state();
    Optimizer begun(copies, mlx_opt::AdamW{}, 1e-3, {}, options);
    const std::string missing = std::string("bias.") + slot_of(masters);
    CHECK(message_of([&] {
            begun.set_state(state);
          }) == "mlx_opt: the state has no \"" + missing + "\"");
    state.merge(begun.state());
    begun.set_state(state);
    CHECK(begun.step() == 1);
    CHECK(equal(begun.master_parameters(copies), in(mx::float32, copies)));
  }
}

TEST_CASE("master weights that do not fit are refused by name, and nothing changes") {
  auto named = in(mx::bfloat16, parameters());
  const mlx_opt::Options remainder{.master_weights = MasterWeights::remainder};
  Optimizer optimizer(named, mlx_opt::SGD{}, 0.1, {}, remainder);
  optimizer.update(named, in(mx::bfloat16, gradients()));
  const auto before = optimizer.state();
  NamedArrays state = before;
  state.at("bias.remainder") = mx::zeros({3});
  CHECK(message_of([&] {
          optimizer.set_state(state);
        }) == "mlx_opt: bias.remainder: state float32 (3,), expected uint16 (3,)");
  state.at("bias.remainder") = mx::zeros({4}, mx::uint16);
  CHECK(message_of([&] {
          optimizer.set_state(state);
        }) == "mlx_opt: bias.remainder: state uint16 (4,), expected uint16 (3,)");
  CHECK(message_of([&] {
          optimizer.master_parameters({{"bias", mx::ones({4}, mx::bfloat16)}});
        }) == "mlx_opt: bias: parameter (4,), state (3,)");
  const auto halves = in(mx::float16, parameters());
  const std::string use =
      "mlx_opt: bias: MasterWeights::remainder is for bfloat16, got float16: use "
      "MasterWeights::float32";
  CHECK(message_of([&] { Optimizer(halves, mlx_opt::SGD{}, 0.1, {}, remainder); }) == use);
  for (const mx::Dtype dtype : {mx::float16, mx::float32}) {
    auto other = in(dtype, named);
    const auto held = other;
    CHECK(
        message_of([&] { optimizer.update(other, gradients()); }) ==
        (dtype == mx::float16
             ? use
             : "mlx_opt: bias: a parameter in float32 of shape (3,) has the state v, but the "
               "optimizer was made with one of the state v, remainder"));
    CHECK(equal(other, held));
  }
  CHECK(equal(optimizer.state(), before));
}

TEST_CASE("a skipped step leaves master weights") {
  for (const MasterWeights masters : kinds) {
    auto named = in(mx::bfloat16, parameters());
    Optimizer optimizer(named, mlx_opt::AdamW{}, 1e-3, {}, {.master_weights = masters});
    optimizer.update(named, in(mx::bfloat16, gradients()));
    const auto weights = optimizer.master_parameters(named);
    optimizer.update(named, {{"bias", mx::full({3}, NAN, mx::bfloat16)}}, {.skip_nonfinite = true});
    CHECK(optimizer.skipped() == 1);
    CHECK(equal(optimizer.master_parameters(named), weights));
    optimizer.update(named, in(mx::bfloat16, gradients()));
    CHECK_FALSE(equal(optimizer.master_parameters(named), weights));
  }
}
