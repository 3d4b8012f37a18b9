// Averages of the weights that the optimizer over named parameters keeps.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "file.h"
#include "mlx/mlx.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::Ema;
using mlx_opt::EmaWarmup;
using mlx_opt::MasterWeights;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

namespace {

NamedArrays halved(const NamedArrays& arrays) {
  NamedArrays halves;
  for (const auto& [name, x] : arrays) {
    halves.emplace(name, mx::astype(x, mx::bfloat16));
  }
  return halves;
}

bool are_near(const NamedArrays& a, const NamedArrays& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](auto& x, auto& y) {
    return x.first == y.first && mx::allclose(x.second, y.second, 1e-6).template item<bool>();
  });
}

// The averages after a step of weights w: e + rate (w - e).
void average(NamedArrays& e, const NamedArrays& w, double rate) {
  for (auto& [name, x] : e) {
    x = x + mx::array(static_cast<float>(rate)) * (w.at(name) - x);
  }
}

struct Case {
  Ema ema;
  double (*rate)(int step);
};

const Case cases[] = {
    {{.decay = 0.75}, [](int step) { return step == 1 ? 1.0 : 0.25; }},
    {{.decay = 0.75, .update_after = 2}, [](int step) { return step <= 3 ? 1.0 : 0.25; }},
    {{.decay = 0.75, .warmup = EmaWarmup::ratio},
     [](int step) { return step == 1 ? 1.0 : std::max(0.25, 9.0 / (9.0 + step)); }},
    {{.decay = 0.75, .warmup = EmaWarmup::power, .power = 1.0, .update_after = 1},
     [](int step) { return step <= 2 ? 1.0 : std::max(0.25, 1.0 / (step - 1)); }},
};

} // namespace

TEST_CASE("averages of the weights follow their decay and its warm-up, and change no step") {
  for (const auto& [name, hypers] : optimizers::all()) {
    for (const auto& [ema, rate] : cases) {
      CAPTURE(name);
      CAPTURE(ema.update_after);
      auto named = parameters(), expected = parameters(), averages = parameters();
      Optimizer optimizer(named, hypers, 0.01, {}, {.ema = ema}), plain(expected, hypers, 0.01);
      CHECK(equal(optimizer.ema_parameters(named), named)); // before the first step
      for (int step = 1; step <= 6; ++step) {
        optimizer.update(named, gradients());
        plain.update(expected, gradients());
        average(averages, expected, rate(step));
        CHECK(are_near(optimizer.ema_parameters(named), averages));
        mx::eval(mlx_opt::values(named));
        mx::eval(optimizer.values());
      }
      CHECK(equal(named, expected));
      CHECK(optimizer.state().at("bias.ema").dtype() == mx::float32);
    }
  }
}

TEST_CASE("the decay of the ratio is at most (1 + s) / (10 + s)") {
  NamedArrays named = {{"w", mx::zeros({1})}};
  const Ema ema{.decay = 0.9999, .warmup = EmaWarmup::ratio};
  Optimizer optimizer(named, mlx_opt::SGD{}, 1.0, {}, {.ema = ema});
  double e = 0;
  for (int s = 0; s < 4; ++s) {
    optimizer.update(named, {{"w", mx::full({1}, -1.0f)}});
    const double decay = s == 0 ? 0.0 : (1.0 + s) / (10.0 + s);
    e = decay * e + (1 - decay) * (s + 1);
    CHECK(optimizer.ema_parameters(named).at("w").item<float>() == doctest::Approx(e));
  }
}

TEST_CASE("with master weights the average is of these") {
  for (const MasterWeights masters : {MasterWeights::float32, MasterWeights::remainder}) {
    for (const auto& [name, hypers] : optimizers::all()) {
      CAPTURE(name);
      auto named = halved(parameters()), wide = parameters();
      const Ema ema{.decay = 0.5};
      Optimizer optimizer(named, hypers, 1e-3, {}, {.master_weights = masters, .ema = ema});
      Optimizer plain(wide, hypers, 1e-3, {}, {.ema = ema});
      for (int step = 0; step < 3; ++step) {
        optimizer.update(named, halved(gradients()));
        plain.update(wide, gradients());
      }
      CHECK(equal(optimizer.master_parameters(named), wide));
      CHECK(equal(optimizer.ema_parameters(named), plain.ema_parameters(wide)));
    }
  }
}

TEST_CASE("the average of what is rounded stochastically is of the rounded parameters") {
  auto named = halved(parameters());
  Optimizer optimizer(named, mlx_opt::Lion{}, 1e-3, {}, {.rounding_seed = 1, .ema = {0.5}});
  optimizer.update(named, halved(gradients()));
  for (const auto& [name, average] : optimizer.ema_parameters(named)) {
    CHECK(mx::array_equal(average, mx::astype(named.at(name), mx::float32)).item<bool>());
  }
}

TEST_CASE("a step that is skipped, or has no gradient of a parameter, moves no average") {
  auto named = parameters();
  Optimizer optimizer(
      named,
      mlx_opt::AdamW{},
      0.1,
      {},
      {.ema = {.decay = 0.5, .warmup = EmaWarmup::ratio, .update_after = 1}});
  const mlx_opt::Clip clip = {.skip_nonfinite = true};
  auto some = gradients();
  some.erase("bias");
  optimizer.update(named, some, clip);
  CHECK(std::isnan(mx::take(optimizer.state().at("bias.ema"), 0).item<float>()));
  const auto before = optimizer.ema_parameters(named);
  CHECK(equal(before, named));
  optimizer.update(named, {{"bias", mx::full({3}, NAN)}}, clip);
  CHECK(equal(optimizer.ema_parameters(named), before));
  // Two steps have been taken now, so that the second is not averaged.
  optimizer.update(named, gradients(), clip);
  CHECK(equal(optimizer.ema_parameters(named), named));
  optimizer.update(named, gradients(), clip);
  CHECK_FALSE(equal(optimizer.ema_parameters(named), named));
}

TEST_CASE("evaluating gives the parameters their averages, and back") {
  auto named = halved(parameters());
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1, {}, {.ema = {.decay = 0.5}});
  for (int step = 0; step < 2; ++step) {
    optimizer.update(named, halved(gradients()));
  }
  const auto id = named.at("bias").id();
  const NamedArrays before = named;
  {
    const auto averaged = optimizer.evaluating(named);
    CHECK(named.at("bias").dtype() == mx::bfloat16);
    CHECK(equal(named, halved(optimizer.ema_parameters(before))));
    CHECK_FALSE(equal(named, before));
    const std::string refusal =
        "mlx_opt: the parameters are averages: end the Evaluating before the next step";
    CHECK(message_of([&] { optimizer.update(named, halved(gradients())); }) == refusal);
    CHECK(message_of([&] { optimizer.accumulate(gradients()); }) == refusal);
    CHECK(message_of([&] { const auto again = optimizer.evaluating(named); }) == refusal);
    Optimizer moved = std::move(optimizer);
    CHECK(message_of([&] { moved.update(named, {}); }) == refusal);
    optimizer = std::move(moved);
    named.erase("layers.0.weight");
    named.emplace("other", mx::ones({1}));
  }
  CHECK(named.at("bias").id() == id);
  CHECK(named.size() == 2);
  named = before;
  optimizer.update(named, halved(gradients()));
  CHECK(optimizer.step() == 3);
}

TEST_CASE("averages are in checkpoints, and may begin in the middle of a run") {
  const File file("ema");
  const mlx_opt::Options options{.ema = {.decay = 0.5, .warmup = EmaWarmup::power}};
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1, {}, options);
  optimizer.update(named, gradients());
  optimizer.update(named, gradients());
  optimizer.save(file.path());
  auto copies = named;
  Optimizer resumed(copies, mlx_opt::AdamW{}, 0.1, {}, options);
  resumed.load(file.path());
  optimizer.update(named, gradients());
  resumed.update(copies, gradients());
  CHECK(equal(resumed.state(), optimizer.state()));
  Optimizer without(copies, mlx_opt::AdamW{}, 0.1);
  CHECK(
      message_of([&] { without.load(file.path()); }) ==
      "mlx_opt: cannot load " + file.path() +
          ": mlx_opt: the state's \"bias.ema\" belongs to no parameter of this optimizer");
  NamedArrays state = without.state();
  Optimizer begun(copies, mlx_opt::AdamW{}, 0.1, {}, options);
  state.merge(begun.state());
  begun.set_state(state);
  CHECK(equal(begun.ema_parameters(copies), copies));
}

TEST_CASE("averages that cannot be are refused") {
  const auto refusal = [](const mlx_opt::Options& options) {
    return message_of([&] { Optimizer(parameters(), mlx_opt::AdamW{}, 0.1, {}, options); });
  };
  CHECK(
      refusal({.ema = {.decay = 1.0}}) ==
      "mlx_opt AdamW: ema.decay: expected a number in [0, 1), got 1.000000");
  CHECK(
      refusal({.ema = {.decay = NAN}}) ==
      "mlx_opt AdamW: ema.decay: expected a number in [0, 1), got nan");
  CHECK(
      refusal({.ema = {.decay = 0.5, .power = 0.0}}) ==
      "mlx_opt AdamW: ema.power: expected a number in (0, 1], got 0.000000");
  CHECK(
      refusal({.state_dtypes = {.all = mx::int8}, .ema = {.decay = 0.5}}) ==
      "mlx_opt AdamW: an average of the weights does not go with a state in int8");
  auto named = parameters();
  Optimizer without(named, mlx_opt::AdamW{}, 0.1);
  const std::string none = "mlx_opt: the optimizer has no ema, and so no averages";
  CHECK(message_of([&] { without.ema_parameters(named); }) == none);
  CHECK(message_of([&] { const auto averaged = without.evaluating(named); }) == none);
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1, {}, {.ema = {.decay = 0.5}});
  CHECK(message_of([&] {
          optimizer.ema_parameters({{"bias", mx::ones({4})}});
        }) == "mlx_opt: bias: parameter (4,), state (3,)");
  optimizer.update(named, gradients()); // no Evaluating is left behind
}
