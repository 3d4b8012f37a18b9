// Groups of the optimizer over named parameters.
#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "mlx/mlx.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::Group;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using namespace trees;

namespace {

NamedArrays only(const NamedArrays& all, const std::string& name) {
  return {{name, all.at(name)}};
}

// The parameters after some steps with groups, and those that two optimizers give.
void check_split(
    const mlx_opt::Hyperparameters& base,
    const mlx_opt::Hyperparameters& of_bias,
    const Group& group,
    double rate,
    double rate_of_bias,
    const mlx_opt::Clip& clip = {}) {
  auto grouped = parameters(), bias = only(parameters(), "bias");
  auto weight = only(parameters(), "layers.0.weight");
  Optimizer optimizer(grouped, base, rate, {group});
  Optimizer first(bias, of_bias, rate_of_bias), second(weight, base, rate);
  for (int step = 0; step < 3; ++step) {
    optimizer.update(grouped, gradients(), clip);
    first.update(bias, only(gradients(), "bias"), clip);
    second.update(weight, only(gradients(), "layers.0.weight"), clip);
  }
  CHECK(equal(only(grouped, "bias"), bias));
  CHECK(equal(only(grouped, "layers.0.weight"), weight));
}

} // namespace

TEST_CASE("a group has hyperparameters of its own") {
  check_split(
      mlx_opt::AdamW{.weight_decay = 0.1},
      mlx_opt::AdamW{.beta2 = 0.9, .weight_decay = 0.0},
      {.match = {"*bias"}, .hypers = {{"weight_decay", 0.0}, {"betas[1]", 0.9}}},
      0.1,
      0.1);
}

TEST_CASE("a group has a number of its own that the rule keeps") {
  using mlx_opt::RuleByName;
  const Group group = {
      .match = {"bias"}, .hypers = {{"betas[0]", 0.5}, {"momentum_decay", 0.5}}, .name = "b"};
  const RuleByName own = {"NAdam", {{"betas[0]", 0.5}, {"momentum_decay", 0.5}}};
  check_split(RuleByName{"NAdam"}, own, group, 0.1, 0.1);
  check_split(RuleByName{"NAdam"}, own, group, 0.1, 0.1, {.skip_nonfinite = true});

  auto named = parameters();
  Optimizer optimizer(named, RuleByName{"NAdam"}, 0.1, {group});
  optimizer.update(named, gradients());
  const auto state = optimizer.state();
  const float number = mx::array(state.at("mlx_opt.groups.b.mu_product")).item<float>();
  CHECK(number == doctest::Approx(0.5 * (1 - 0.5 * std::pow(0.96, 0.5))));
  Optimizer again(named, RuleByName{"NAdam"}, 0.1, {group});
  again.set_state(state);
  CHECK(equal(again.state(), state));

  auto broken = gradients();
  broken.at("bias") = broken.at("bias") * mx::array(NAN);
  again.update(named, broken, {.skip_nonfinite = true});
  CHECK(mx::array(again.state().at("mlx_opt.groups.b.mu_product")).item<float>() == number);
}

TEST_CASE("a group with a name has its own sums over all tensors") {
  using mlx_opt::RuleByName;
  for (const char* rule : {"Prodigy", "DAdaptAdam"}) {
    CAPTURE(rule);
    const Group group = {.match = {"bias"}, .learning_rate_scale = 0.5, .name = "b"};
    check_split(RuleByName{rule}, RuleByName{rule}, group, 1.0, 0.5);
    check_split(RuleByName{rule}, RuleByName{rule}, group, 1.0, 0.5, {.skip_nonfinite = true});
    const RuleByName slow = {rule, {{"growth_rate", 1.5}}};
    check_split(
        RuleByName{rule},
        slow,
        {.match = {"bias"}, .hypers = {{"growth_rate", 1.5}}, .name = "b"},
        1.0,
        1.0);
  }
}

TEST_CASE("a group's factor is of the greatest learning rate too") {
  const auto corrected = [](double greatest) {
    return mlx_opt::AdamW{
        .weight_decay_kind = mlx_opt::WeightDecayKind::corrected, .max_learning_rate = greatest};
  };
  const float scaled = 0.5f * static_cast<float>(0.1);
  check_split(
      corrected(0.5),
      corrected(0.25),
      {.match = {"bias"}, .learning_rate_scale = 0.5},
      0.1,
      scaled);
  check_split(
      corrected(0.5),
      corrected(0.5),
      {.match = {"bias"}, .hypers = {{"max_learning_rate", 0.5}}, .learning_rate_scale = 0.5},
      0.1,
      scaled);
}

TEST_CASE("a group may ascend, decay by another kind or keep the largest squares") {
  check_split(
      mlx_opt::SGD{},
      mlx_opt::SGD{.maximize = true},
      {.match = {"bias"}, .hypers = {{"maximize", 1.0}}},
      0.1,
      0.1);
  check_split(
      mlx_opt::AdamW{},
      mlx_opt::AdamW{.amsgrad = true, .weight_decay_kind = mlx_opt::WeightDecayKind::independent},
      {.match = {"bias"}, .hypers = {{"amsgrad", 1.0}, {"weight_decay_kind", 2.0}}},
      0.1,
      0.1);
}

TEST_CASE("a group has a factor of the learning rate, or a rate of its own") {
  const float scaled = 0.5f * static_cast<float>(0.1);
  check_split(
      mlx_opt::Lion{},
      mlx_opt::Lion{},
      {.match = {"bias"}, .learning_rate_scale = 0.5},
      0.1,
      scaled);
  check_split(
      mlx_opt::Lion{},
      mlx_opt::Lion{},
      {.match = {"bi?s"}, .learning_rate_scale = 0.5, .learning_rate = 0.4},
      0.1,
      0.2f);
}

TEST_CASE("a group's hyperparameters may choose another rule") {
  check_split(
      mlx_opt::SGD{},
      mlx_opt::SGD{.momentum = 0.9, .nesterov = true},
      {.match = {"bias"}, .hypers = {{"momentum", 0.9}, {"nesterov", 1.0}}},
      0.1,
      0.1,
      {.skip_nonfinite = true});
}

TEST_CASE("Muon has groups") {
  check_split(
      mlx_opt::Muon{.decoupled_weight_decay = true},
      mlx_opt::Muon{.momentum = 0.5, .weight_decay = 0.3, .decoupled_weight_decay = true},
      {.match = {"bias"}, .hypers = {{"momentum", 0.5}, {"weight_decay", 0.3}}},
      0.1,
      0.1);
}

TEST_CASE("the first group that has a value gives it") {
  auto named = parameters();
  Optimizer optimizer(
      named,
      mlx_opt::SGD{},
      1.0,
      {{.match = {"bias"}, .learning_rate_scale = 0.5},
       {.match = {"*"}, .learning_rate_scale = 0.25, .learning_rate = 2.0}});
  optimizer.update(named, gradients());
  CHECK(mx::array_equal(named.at("bias"), mx::full({3}, 0.25f)).item<bool>());
  CHECK(mx::array_equal(named.at("layers.0.weight"), mx::full({2, 3}, 2.0f)).item<bool>());
}

TEST_CASE("the norm is that of all groups, without those that are frozen") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1, {{.match = {"layers.*"}, .frozen = true}});
  optimizer.update(named, gradients(), {.max_norm = 0.1});
  CHECK(std::abs(optimizer.grad_norm()->item<float>() - std::sqrt(3 * 0.0625)) < 1e-6);
  CHECK(mx::array_equal(named.at("layers.0.weight"), mx::full({2, 3}, 1.0f)).item<bool>());
  CHECK(!optimizer.state().contains("layers.0.weight.m"));
  CHECK(optimizer.state().contains("bias.m"));
}

TEST_CASE("a state goes to an optimizer with the same groups and back") {
  auto named = parameters();
  const std::vector<Group> groups = {{.match = {"bias"}, .frozen = true}};
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1, groups),
      other(named, mlx_opt::AdamW{}, 0.1, groups);
  optimizer.update(named, gradients());
  other.set_state(optimizer.state());
  CHECK(equal(other.state(), optimizer.state()));
}

TEST_CASE("a group has options of its own") {
  using mlx_opt::MasterWeights;
  using mlx_opt::Options;
  NamedArrays halves, slopes;
  for (const auto& [name, x] : parameters()) {
    halves.emplace(name, mx::astype(x, mx::bfloat16));
    slopes.emplace(name, mx::astype(gradients().at(name), mx::bfloat16));
  }
  const Options all[] = {
      {},
      {.state_dtypes = {.all = mx::float32}},
      {.master_weights = MasterWeights::float32},
      {.master_weights = MasterWeights::remainder, .ema = {.decay = 0.5}},
      {.rounding_seed = 1},
      {.rounding_seed = 2, .ema = {.decay = 0.75, .warmup = mlx_opt::EmaWarmup::ratio}}};
  for (const auto& [name, hypers] : optimizers::all()) {
    for (const Options& base : all) {
      for (const Options& of_bias : all) {
        CAPTURE(name);
        auto grouped = halves, bias = only(halves, "bias");
        auto weight = only(halves, "layers.0.weight");
        const Group group{.match = {"bias"}, .options = of_bias};
        Optimizer optimizer(grouped, hypers, 1e-3, {group}, base);
        Optimizer first(bias, hypers, 1e-3, {}, of_bias), second(weight, hypers, 1e-3, {}, base);
        for (int step = 0; step < 3; ++step) {
          optimizer.update(grouped, slopes);
          first.update(bias, only(slopes, "bias"));
          second.update(weight, only(slopes, "layers.0.weight"));
        }
        // Numbers of sums over all tensors would differ; none of these rules has some.
        NamedArrays expected = first.state(), states = second.state();
        states.merge(expected);
        CHECK(equal(optimizer.state(), states));
        CHECK(equal(only(grouped, "bias"), bias));
        CHECK(equal(only(grouped, "layers.0.weight"), weight));
        NamedArrays weights = first.master_parameters(bias);
        weights.merge(second.master_parameters(weight));
        CHECK(equal(optimizer.master_parameters(grouped), weights));
      }
    }
  }
}

TEST_CASE("parameters of a group without averages are their own") {
  auto named = parameters();
  Optimizer optimizer(
      named,
      mlx_opt::AdamW{},
      0.1,
      {{.match = {"bias"}, .options = mlx_opt::Options{}}},
      {.ema = {.decay = 0.5}});
  optimizer.update(named, gradients());
  optimizer.update(named, gradients());
  const auto averages = optimizer.ema_parameters(named);
  CHECK(equal(only(averages, "bias"), only(named, "bias")));
  CHECK_FALSE(equal(averages, named));
}

TEST_CASE("a wrong group is refused by name") {
  const auto message = [](const mlx_opt::Hyperparameters& hypers, Group group) {
    return message_of([&] { Optimizer(parameters(), hypers, 0.1, {group}); });
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(message(mlx_opt::SGD{}, {}), "no pattern"));
  CHECK(has(message(mlx_opt::SGD{}, {.match = {"biass"}}), "\"biass\" of a group matches no"));
  CHECK(message(mlx_opt::SGD{}, {.match = {"biass"}, .may_match_nothing = true}).empty());
  CHECK(has(message(mlx_opt::SGD{}, {.match = {"*"}, .hypers = {{"decay", 1.0}}}), "decay"));
  CHECK(
      has(message(mlx_opt::AdamW{}, {.match = {"*"}, .hypers = {{"betas[0]", 1.5}}}), "betas[0]"));
  CHECK(has(message(mlx_opt::SGD{}, {.match = {"*"}, .learning_rate_scale = -1.0}), "0 or more"));
  CHECK(
      has(message(mlx_opt::Adafactor{}, {.match = {"*"}, .learning_rate_scale = 0.5}),
          "does not read the learning rate"));
  CHECK(
      has(message(mlx_opt::RuleByName{"NAdam"}, {.match = {"*"}, .hypers = {{"betas[0]", 0.5}}}),
          "a group that changes mu_product needs a name"));
  CHECK(has(message(mlx_opt::SGD{}, {.match = {"*"}, .name = "a.b"}), "have no dots"));
  CHECK(
      has(message(mlx_opt::SGD{}, {.match = {"*"}, .hypers = {{"nesterov", 1.0}}}),
          "nesterov needs a momentum"));
  CHECK(
      has(message(mlx_opt::Adagrad{}, {.match = {"*"}, .options = {{{.all = mx::int8}}}}),
          "there is no state that int8 can hold"));
}
