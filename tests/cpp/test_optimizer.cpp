// The optimizer over named parameters.
#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>
#include <utility>

#include "mlx/mlx.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

TEST_CASE("the optimizer does what the functions do, and counts") {
  for (const auto& [name, hypers] : optimizers::all()) {
    CAPTURE(name);
    auto named = parameters();
    Optimizer optimizer(named, hypers, 0.01);
    auto arrays = mlx_opt::values(parameters());
    auto state = mlx_opt::initial_state(hypers, arrays);
    for (std::uint64_t step = 1; step <= 3; ++step) {
      optimizer.update(named, gradients());
      mlx_opt::update(
          arrays, mlx_opt::values(gradients()), state, hypers, mx::array(0.01f), mx::array(step));
      CHECK(optimizer.step() == step);
    }
    CHECK(mx::array_equal(named.at("bias"), arrays[0]).item<bool>());
    CHECK(mx::array_equal(named.at("layers.0.weight"), arrays[1]).item<bool>());
  }
}

TEST_CASE("the state has the names, shapes and dtypes of Python's") {
  auto named = parameters();
  const Optimizer optimizer(named, mlx_opt::AdaDelta{}, 0.5);
  const NamedArrays expected = {
      {"step", mx::array(std::uint64_t{0})},
      {"learning_rate", mx::array(0.5f)},
      {"bias.v", mx::zeros({3})},
      {"bias.u", mx::zeros({3})},
      {"layers.0.weight.v", mx::zeros({2, 3})},
      {"layers.0.weight.u", mx::zeros({2, 3})}};
  CHECK(equal(optimizer.state(), expected));
}

TEST_CASE("numbers of sums over all tensors are those of all parameters") {
  // Two parameters of one element, whose gradients are 1 and -2: Prodigy as its page states it.
  NamedArrays w = {{"a", mx::array({0.0f})}, {"b", mx::array({0.0f})}};
  const NamedArrays g = {{"a", mx::array({1.0f})}, {"b", mx::array({-2.0f})}};
  Optimizer optimizer(w, mlx_opt::RuleByName{"Prodigy"}, 1.0);
  const double grads[] = {1.0, -2.0}, beta3 = std::sqrt(0.999), d0 = 1e-6;
  double d = d0, largest = d0, numerator = 0;
  double x[2] = {}, m[2] = {}, v[2] = {}, s[2] = {};
  for (int step = 0; step < 20; ++step) {
    optimizer.update(w, g);
    double denominator = 0;
    numerator *= beta3;
    for (int i = 0; i < 2; ++i) {
      numerator += d / d0 * d * grads[i] * -x[i];
      m[i] = 0.9 * m[i] + 0.1 * d * grads[i];
      v[i] = 0.999 * v[i] + 0.001 * d * d * grads[i] * grads[i];
      s[i] = beta3 * s[i] + d / d0 * d * grads[i];
      denominator += std::abs(s[i]);
    }
    const double before = d, estimate = numerator / denominator;
    largest = std::max(largest, estimate);
    d = largest;
    for (int i = 0; i < 2; ++i) {
      x[i] -= before * m[i] / (std::sqrt(v[i]) + d * 1e-8);
    }
  }
  const auto state = optimizer.state();
  CHECK(d > 100 * d0);
  CHECK(mx::array(state.at("d")).item<float>() == doctest::Approx(d).epsilon(1e-5));
  CHECK(
      mx::array(state.at("d_numerator")).item<float>() == doctest::Approx(numerator).epsilon(1e-5));
  CHECK(w.at("a").item<float>() == doctest::Approx(x[0]).epsilon(1e-5));
  CHECK(w.at("b").item<float>() == doctest::Approx(x[1]).epsilon(1e-5));
  Optimizer again(
      {{"a", mx::array({0.0f})}, {"b", mx::array({0.0f})}}, mlx_opt::RuleByName{"Prodigy"}, 1.0);
  again.set_state(state);
  CHECK(equal(again.state(), state));
}

TEST_CASE("the state has the dtypes that it was given, and parameters keep theirs") {
  NamedArrays halves;
  for (const auto& [name, parameter] : parameters()) {
    halves.emplace(name, mx::astype(parameter, mx::bfloat16));
  }
  const mlx_opt::Options dtypes{.state_dtypes = {.all = mx::bfloat16, .of = {{"v", mx::float32}}}};
  Optimizer optimizer(halves, mlx_opt::AdamW{}, 0.1, {}, dtypes);
  const auto check = [&](mx::Dtype m) {
    for (const auto& [name, parameter] : halves) {
      CHECK(parameter.dtype() == mx::bfloat16);
      CHECK(optimizer.state().at(name + ".m").dtype() == m);
      CHECK(optimizer.state().at(name + ".v").dtype() == mx::float32);
    }
  };
  check(mx::bfloat16);
  optimizer.update(halves, gradients());
  check(mx::bfloat16);
  NamedArrays state = optimizer.state();
  for (const auto& [name, parameter] : halves) {
    state.at(name + ".m") = mx::astype(state.at(name + ".m"), mx::float32);
  }
  optimizer.set_state(state);
  check(mx::float32);
  optimizer.update(halves, gradients());
  check(mx::bfloat16);
}

TEST_CASE("dtypes that a state cannot have are refused") {
  const auto refusal = [](const mlx_opt::StateDtypes& dtypes) {
    return message_of([&] { Optimizer(parameters(), mlx_opt::AdamW{}, 0.1, {}, {dtypes}); });
  };
  CHECK(
      refusal({.all = mx::uint8}) ==
      "mlx_opt AdamW: a state's dtype must be float32, float16, bfloat16 or int8, got uint8");
  CHECK(
      refusal({.of = {{"u", mx::float32}}}) ==
      "mlx_opt AdamW: there is no state \"u\" to have a dtype");
}

TEST_CASE("the learning rate may change between steps") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::SGD{}, 1.0);
  optimizer.set_learning_rate(0.5);
  optimizer.update(named, gradients());
  CHECK(optimizer.learning_rate() == 0.5);
  CHECK(mx::array_equal(named.at("bias"), mx::full({3}, 0.375f)).item<bool>());
}

TEST_CASE("gradients of some parameters update these alone") {
  auto named = parameters();
  const auto untouched = named.at("bias").id();
  Optimizer optimizer(named, mlx_opt::Lion{}, 0.1);
  auto some = gradients();
  some.erase("bias");
  optimizer.update(named, some);
  CHECK(named.at("bias").id() == untouched);
  CHECK(mx::array_equal(named.at("layers.0.weight"), mx::full({2, 3}, 1.1f)).item<bool>());
  CHECK(mx::array_equal(optimizer.state().at("bias.m"), mx::zeros({3})).item<bool>());
  optimizer.update(named, {});
  CHECK(optimizer.step() == 2);
}

TEST_CASE("clipping is by the norm of all gradients, which is kept") {
  auto named = parameters(), expected = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1), plain(expected, mlx_opt::AdamW{}, 0.1);
  CHECK_FALSE(optimizer.grad_norm());
  const double norm = std::sqrt(3 * 0.25 * 0.25 + 6 * 2.0 * 2.0);
  auto clipped = gradients();
  for (auto& [name, g] : clipped) {
    g = g * mx::array(float(0.5 / (norm + 1e-6)));
  }
  for (int i = 0; i < 3; ++i) {
    optimizer.update(named, gradients(), {.max_norm = 0.5});
    plain.update(expected, clipped);
  }
  REQUIRE(optimizer.grad_norm());
  CHECK(optimizer.grad_norm()->dtype() == mx::float32);
  CHECK(optimizer.grad_norm()->item<float>() == doctest::Approx(norm).epsilon(1e-7));
  for (const auto& [name, w] : named) {
    CHECK(mx::allclose(w, expected.at(name), 1e-6).item<bool>());
  }
  optimizer.update(named, gradients(), {.max_norm = 100.0});
  plain.update(expected, gradients());
  for (const auto& [name, w] : named) {
    CHECK(mx::allclose(w, expected.at(name), 1e-6).item<bool>());
  }
}

TEST_CASE("gradients that are added up make one step with their mean") {
  for (const bool normalizes : {false, true}) {
    CAPTURE(normalizes);
    const auto one = normalizes ? std::optional(2.0) : std::nullopt;
    auto named = parameters(), expected = parameters();
    Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1), plain(named, mlx_opt::AdamW{}, 0.1);
    for (int round = 0; round < 2; ++round) {
      for (std::uint64_t call = 1; call <= 3; ++call) {
        optimizer.accumulate(gradients(), one);
        CHECK(optimizer.accumulated() == call);
        mx::eval(optimizer.values());
      }
      optimizer.update(named, gradients(), {.max_norm = 0.5}, {}, one);
      CHECK(optimizer.accumulated() == 0);
      NamedArrays mean;
      for (const auto& [name, gradient] : gradients()) {
        mean.emplace(name, mx::multiply(gradient, mx::array(normalizes ? 0.5f : 1.0f)));
      }
      plain.update(expected, mean, {.max_norm = 0.5});
      CHECK(optimizer.step() == plain.step());
      CHECK(mx::allclose(*optimizer.grad_norm(), *plain.grad_norm()).item<bool>());
      for (const auto& [name, parameter] : named) {
        CHECK(mx::allclose(parameter, expected.at(name), 1e-6).item<bool>());
      }
    }
  }
}

TEST_CASE("gradients are added in place") {
  Optimizer optimizer(parameters(), mlx_opt::SGD{}, 1.0);
  const auto held = [&] { return optimizer.state().at("mlx_opt.accumulated.gradients.bias"); };
  optimizer.accumulate(gradients());
  mx::eval(optimizer.values());
  const float* before = held().data<float>();
  for (int i = 0; i < 2; ++i) {
    auto next = gradients();
    mx::eval(mlx_opt::values(next));
    optimizer.accumulate(std::move(next));
    mx::eval(optimizer.values());
    CHECK(held().data<float>() == before);
  }
  const auto expected = mx::multiply(gradients().at("bias"), mx::array(3.0f));
  CHECK(mx::allclose(held(), expected).item<bool>());
}

TEST_CASE("what is pending is in the state, and may miss parameters") {
  auto named = parameters(), other = parameters();
  Optimizer optimizer(named, mlx_opt::SGD{}, 1.0), again(named, mlx_opt::SGD{}, 1.0);
  auto some = gradients();
  some.erase("bias");
  optimizer.accumulate(some, 4.0);
  const NamedArrays state = optimizer.state();
  CHECK(state.at("mlx_opt.accumulated.calls").size() == 1);
  CHECK(state.at("mlx_opt.accumulated.normalizer").item<float>() == 4.0f);
  CHECK(!state.contains("mlx_opt.accumulated.gradients.bias"));
  again.set_state(state);
  CHECK(again.accumulated() == 1);
  auto rest = gradients();
  rest.erase("layers.0.weight");
  optimizer.update(named, rest, {}, {}, 4.0);
  again.update(other, rest, {}, {}, 4.0);
  CHECK(equal(named, other));
  const auto moved = mx::multiply(gradients().at("bias"), mx::array(0.125f));
  CHECK(mx::allclose(named.at("bias"), mx::subtract(parameters().at("bias"), moved)).item<bool>());
}

TEST_CASE("wider sums change no dtype") {
  NamedArrays halves, small;
  for (const auto& [name, parameter] : parameters()) {
    halves.emplace(name, mx::astype(parameter, mx::bfloat16));
    small.emplace(name, mx::astype(gradients().at(name), mx::bfloat16));
  }
  Optimizer optimizer(halves, mlx_opt::AdamW{}, 0.1);
  optimizer.accumulate(gradients());
  optimizer.accumulate(small);
  CHECK(optimizer.state().at("mlx_opt.accumulated.gradients.bias").dtype() == mx::float32);
  small.erase("layers.0.weight");
  optimizer.update(halves, small);
  CHECK(halves.at("bias").dtype() == mx::bfloat16);
  CHECK(halves.at("layers.0.weight").dtype() == mx::bfloat16);
  CHECK(optimizer.state().at("bias.m").dtype() == mx::bfloat16);
}

TEST_CASE("gradients that cannot be added change nothing") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::SGD{}, 1.0);
  optimizer.accumulate(gradients());
  const auto refusal = [&](const std::string& name, std::optional<double> normalizer) {
    auto wrong = gradients();
    wrong.insert_or_assign(name, mx::ones({7}));
    return message_of([&] { optimizer.accumulate(wrong, normalizer); });
  };
  CHECK(refusal("other", {}) == "mlx_opt: other: there is a gradient but no state");
  CHECK(refusal("bias", {}) == "mlx_opt: bias: gradient (7,), parameter (3,)");
  const std::string some =
      "normalizer: it must be given for all gradients that are added, or for none";
  CHECK(message_of([&] { optimizer.accumulate(gradients(), 2.0); }) == "mlx_opt: " + some);
  CHECK(
      message_of([&] { optimizer.update(named, gradients(), {}, {}, 2.0); }) == "mlx_opt: " + some);
  CHECK(optimizer.accumulated() == 1);
  CHECK(optimizer.step() == 0);
  Optimizer fresh(named, mlx_opt::SGD{}, 1.0);
  CHECK(message_of([&] {
          fresh.accumulate({{"bias", mx::ones({7})}});
        }) == "mlx_opt: bias: gradient (7,), parameter (3,)");
  CHECK(fresh.accumulated() == 0);
}

TEST_CASE("pending gradients that are not of their form are refused by name") {
  const std::string entry = "mlx_opt.accumulated.";
  Optimizer optimizer(parameters(), mlx_opt::SGD{}, 1.0);
  optimizer.accumulate(gradients(), 2.0);
  const auto before = optimizer.state();
  const auto refusal = [&](const std::string& key, const mx::array& instead) {
    auto state = before;
    state.insert_or_assign(entry + key, instead);
    return message_of([&] { optimizer.set_state(state); });
  };
  CHECK(
      refusal("calls", mx::array(1)) ==
      "mlx_opt: the state's \"mlx_opt.accumulated.calls\" must be an array of as many elements as "
      "calls, got int32 of shape ()");
  CHECK(
      refusal("calls", mx::zeros({0}, mx::uint8)) ==
      "mlx_opt: the state has \"mlx_opt.accumulated.gradients.bias\", but no call in "
      "\"mlx_opt.accumulated.calls\"");
  CHECK(
      refusal("normalizer", mx::ones({2})) ==
      "mlx_opt: the state's \"mlx_opt.accumulated.normalizer\" must be one real number, got "
      "float32 of shape (2,)");
  CHECK(refusal("gradients.bias", mx::ones({7})) == "mlx_opt: bias: gradient (7,), parameter (3,)");
  CHECK(
      refusal("gradients.bias", mx::ones({3}, mx::int32)) ==
      "mlx_opt: bias: gradient must be float32, float16 or bfloat16, got int32");
  CHECK(
      refusal("gradients.other", mx::ones({7})) ==
      "mlx_opt: other: there is a gradient but no state");
  CHECK(equal(optimizer.state(), before));
}

TEST_CASE("elements are clipped after the norm's scale") {
  auto named = parameters(), expected = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1), plain(expected, mlx_opt::AdamW{}, 0.1);
  auto clipped = gradients();
  for (auto& [name, g] : clipped) {
    g = mx::clip(g, mx::array(-0.5f), mx::array(0.5f));
  }
  optimizer.update(named, gradients(), {.max_value = 0.5});
  plain.update(expected, clipped);
  CHECK(equal(named, expected));
  CHECK_FALSE(optimizer.grad_norm());
  optimizer.update(named, gradients(), {.max_norm = 100.0, .max_value = 0.5});
  plain.update(expected, clipped);
  CHECK(equal(named, expected));
  CHECK(optimizer.grad_norm());
  CHECK_THROWS_AS(optimizer.update(named, {}, {.max_value = -1.0}), std::invalid_argument);
}

TEST_CASE("kinds of weight decay that need more are refused") {
  using mlx_opt::WeightDecayKind;
  const auto build = [](const mlx_opt::Hyperparameters& hypers) {
    Optimizer(parameters(), hypers, 0.1);
  };
  const auto coupled = WeightDecayKind::coupled, corrected = WeightDecayKind::corrected;
  CHECK_THROWS_WITH_AS(
      build(mlx_opt::SGD{.weight_decay = 0.1, .cautious_weight_decay = true}),
      "mlx_opt SGD: cautious_weight_decay needs a weight_decay_kind other than coupled",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      build(mlx_opt::AdamW{.weight_decay_kind = corrected}),
      "mlx_opt AdamW: a weight_decay_kind of corrected needs max_learning_rate",
      std::invalid_argument);
  build(mlx_opt::Adam{.weight_decay_kind = coupled, .cautious_weight_decay = true});
  build(mlx_opt::Adam{.cautious = true});
  CHECK_THROWS_WITH_AS(
      build(mlx_opt::AdamW{.amsgrad = true, .cautious = true}),
      "mlx_opt AdamW: cautious does not go with amsgrad",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      build(mlx_opt::Lion{.weight_decay = 0.1, .weight_decay_kind = coupled, .cautious = true}),
      "mlx_opt Lion: cautious needs a weight_decay_kind other than coupled",
      std::invalid_argument);
  CHECK_THROWS_AS(
      build(mlx_opt::RuleByName{"RMSprop", {{"maximize", 1.0}}}), std::invalid_argument);
}

TEST_CASE("a step whose norm is not finite is counted, and nothing else changes") {
  const mlx_opt::Clip clip = {.max_norm = 1.0, .skip_nonfinite = true};
  for (const auto& [name, hypers] : optimizers::all()) {
    CAPTURE(name);
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      auto named = parameters(), straight = parameters();
      Optimizer optimizer(named, hypers, 0.1), never(straight, hypers, 0.1);
      optimizer.update(named, gradients(), clip);
      never.update(straight, gradients(), clip);
      const auto before = named;
      const auto state = optimizer.state();
      CHECK(state.at("mlx_opt.skipped").dtype() == mx::uint64);
      auto broken = gradients();
      broken.at("bias") = broken.at("bias") + mx::array({0.0f, bad, 0.0f});
      optimizer.update(named, broken, clip);
      CHECK(equal(named, before));
      CHECK(optimizer.step() == 1);
      CHECK(optimizer.skipped() == 1);
      CHECK_FALSE(std::isfinite(optimizer.grad_norm()->item<float>()));
      auto after = optimizer.state();
      after.insert_or_assign("mlx_opt.skipped", state.at("mlx_opt.skipped"));
      after.insert_or_assign("mlx_opt.grad_norm", state.at("mlx_opt.grad_norm"));
      CHECK(equal(after, state));
      // The optimizer continues as if that gradient had not been there, clipped or not.
      for (const auto& next : {clip, mlx_opt::Clip{}}) {
        optimizer.update(named, gradients(), next);
        never.update(straight, gradients(), next);
      }
      CHECK(equal(named, straight));
      CHECK(optimizer.step() == 3);
      CHECK(optimizer.skipped() == 1);
      CHECK(never.skipped() == 0);
    }
  }
}

TEST_CASE("the averages of a rule that averages are the means of its base iterates") {
  auto named = parameters();
  Optimizer optimizer(
      named,
      mlx_opt::RuleByName{"SGDScheduleFree", {{"momentum", 0.8}}},
      0.1,
      {{.match = {"bias"}, .hypers = {{"momentum", 0.5}}}});
  const mx::array first = mx::array(named.at("bias"));
  CHECK(mx::array_equal(optimizer.averages(named).at("bias"), first).item<bool>());
  mx::array sum = mx::zeros_like(first);
  for (int step = 1; step <= 3; ++step) {
    optimizer.update(named, gradients());
    sum = sum + optimizer.state().at("bias.z");
    mx::eval(optimizer.values());
  }
  const auto averages = optimizer.averages(named);
  CHECK(mx::allclose(averages.at("bias"), sum / mx::array(3.0f)).item<bool>());
  CHECK(averages.size() == named.size());
  CHECK(optimizer.state().at("averaged_steps").item<float>() == 3);
  CHECK(message_of([&] {
          Optimizer(named, mlx_opt::AdamW{}, 0.1).averages(named);
        }) == "mlx_opt: AdamW does not average the parameters");
}

TEST_CASE("a number that a rule keeps changes with each step that is taken, and is in the state") {
  const mlx_opt::RuleByName hypers = {"NAdam", {{"momentum_decay", 0.1}}};
  const auto momentum = [](int step) { return 0.9 * (1 - 0.5 * std::pow(0.96, 0.1 * step)); };
  const auto kept = [](const Optimizer& optimizer) {
    return mx::array(optimizer.state().at("mu_product")).item<float>();
  };
  for (bool skips : {false, true}) {
    auto named = parameters();
    Optimizer optimizer(named, hypers, 0.1);
    CHECK(kept(optimizer) == 1);
    double product = 1, m = 0, v = 0, w = 0.5;
    for (int step = 1; step <= 4; ++step) {
      if (skips) {
        auto broken = gradients();
        broken.at("bias") = broken.at("bias") * mx::array(NAN);
        optimizer.update(named, broken, {.skip_nonfinite = true});
        CHECK(kept(optimizer) == doctest::Approx(product).epsilon(1e-6));
      }
      auto g = gradients();
      mx::eval(mlx_opt::values(g));
      optimizer.update(named, std::move(g), {.skip_nonfinite = skips});
      product *= momentum(step);
      CHECK(kept(optimizer) == doctest::Approx(product).epsilon(1e-6));
      const double d = 0.25;
      m = 0.9 * m + 0.1 * d;
      v = 0.999 * v + 0.001 * d * d;
      const double next = momentum(step + 1);
      w -= 0.1 * (next * m / (1 - product * next) + (1 - momentum(step)) * d / (1 - product)) /
           (std::sqrt(v / (1 - std::pow(0.999, step))) + 1e-8);
      mx::eval(named.at("bias"));
      CHECK(named.at("bias").data<float>()[0] == doctest::Approx(w).epsilon(1e-5));
    }
    auto other = parameters();
    Optimizer again(other, hypers, 0.1);
    again.set_state(optimizer.state());
    CHECK(equal(again.state(), optimizer.state()));
    auto state = optimizer.state();
    state.erase("mu_product");
    CHECK(
        message_of([&] { again.set_state(state); }) == "mlx_opt: the state has no \"mu_product\"");
  }
}

TEST_CASE("an update that fails names the parameter and changes nothing") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1);
  optimizer.update(named, gradients());
  const auto before = named;
  const auto state = optimizer.state();
  const auto message = [&](NamedArrays wrong) {
    return message_of([&] { optimizer.update(named, std::move(wrong)); });
  };
  CHECK(message({{"bias", mx::ones({4})}}) == "mlx_opt: bias: gradient (4,), parameter (3,)");
  CHECK(
      message({{"bias", mx::ones({3}, mx::int32)}}) ==
      "mlx_opt: bias: gradient must be float32, float16 or bfloat16, got int32");
  CHECK(
      message({{"scale", mx::ones({3})}}) ==
      "mlx_opt: scale: there is a gradient but no parameter");
  auto more = named;
  more.emplace("scale", mx::ones({3}));
  CHECK(message_of([&] {
          optimizer.update(more, {{"scale", mx::ones({3})}});
        }) == "mlx_opt: scale: there is a gradient but no state");
  CHECK(message_of([&] {
          optimizer.update(named, gradients(), {.max_norm = -1.0, .skip_nonfinite = true});
        }) == "mlx_opt: max_norm should be >=0, -1 was provided instead");
  CHECK(equal(named, before));
  CHECK(equal(optimizer.state(), state));
}

TEST_CASE("a moved optimizer goes on, and the one that it was made of throws") {
  auto named = parameters(), expected = parameters();
  Optimizer plain(expected, mlx_opt::AdamW{}, 0.1), first(named, mlx_opt::AdamW{}, 0.1);
  const mlx_opt::Clip clip = {.max_norm = 1.0, .skip_nonfinite = true};
  first.update(named, gradients(), clip);
  Optimizer moved = std::move(first);
  const std::string gone = "mlx_opt: this optimizer has been moved from";
  CHECK(message_of([&] { first.update(named, gradients()); }) == gone);
  CHECK(message_of([&] { first.accumulate(gradients()); }) == gone);
  CHECK(message_of([&] { first.state(); }) == gone);
  CHECK(message_of([&] { first.values(); }) == gone);
  CHECK(message_of([&] { first.step(); }) == gone);
  CHECK(message_of([&] { first.grad_norm(); }) == gone);
  CHECK(message_of([&] { first.set_state(moved.state()); }) == gone);
  CHECK(message_of([&] { first.master_parameters(named); }) == gone);
  first = std::move(moved);
  first.update(named, gradients());
  plain.update(expected, gradients(), clip);
  plain.update(expected, gradients());
  CHECK(equal(named, expected));
  CHECK(equal(first.state(), plain.state()));
}

TEST_CASE("an optimizer without parameters counts its steps") {
  NamedArrays none;
  Optimizer optimizer(none, mlx_opt::AdamW{}, 0.1);
  optimizer.update(none, {}, {.max_norm = 1.0, .skip_nonfinite = true});
  optimizer.accumulate({});
  optimizer.update(none, {});
  CHECK(optimizer.step() == 2);
  CHECK(optimizer.grad_norm()->item<float>() == 0);
  CHECK(none.empty());
}

TEST_CASE("an optimizer of parameters that it cannot update is not made") {
  CHECK_THROWS_WITH_AS(
      Optimizer({{"ids", mx::zeros({3}, mx::uint32)}}, mlx_opt::SGD{}, 0.1),
      "mlx_opt: ids: parameter must be float32, float16 or bfloat16, got uint32",
      std::invalid_argument);
  CHECK_THROWS_AS(Optimizer({}, mlx_opt::Lion{.beta1 = 2.0}, 0.1), std::invalid_argument);
}
