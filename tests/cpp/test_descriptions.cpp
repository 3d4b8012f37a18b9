// The C++ interface agrees with the rules' descriptions.
#include <doctest/doctest.h>

#include "mlx/mlx.h"
#include "mlx_opt/api/definition.h"
#include "mlx_opt/mlx_opt.h"

namespace mx = mlx::core;
using mlx_opt::RuleByName;

namespace {

std::vector<double> numbers(const mlx_opt::Hyperparameters& hypers) {
  std::vector<double> numbers;
  for (const mlx_opt::Scalar& x : mlx_opt::definition(hypers).hypers) {
    numbers.push_back(std::get<double>(x));
  }
  return numbers;
}

} // namespace

TEST_CASE("a struct of hyperparameters has the defaults of the rule's description") {
  const std::vector<std::pair<mlx_opt::Hyperparameters, RuleByName>> pairs = {
      {mlx_opt::SGD{}, {"SGD"}},
      {mlx_opt::SGD{.momentum = 0.9}, {"SGD", {{"momentum", 0.9}}}},
      {mlx_opt::SGD{.momentum = 0.9, .nesterov = true},
       {"SGD", {{"momentum", 0.9}, {"nesterov", 1}}}},
      {mlx_opt::RMSprop{}, {"RMSprop"}},
      {mlx_opt::Adagrad{}, {"Adagrad"}},
      {mlx_opt::AdaDelta{}, {"AdaDelta"}},
      {mlx_opt::Adam{}, {"AdamW", {{"weight_decay", 0}}}},
      {mlx_opt::AdamW{}, {"AdamW"}},
      {mlx_opt::Adamax{}, {"Adamax"}},
      {mlx_opt::Lion{}, {"Lion"}},
      {mlx_opt::Adafactor{}, {"Adafactor"}},
      {mlx_opt::Muon{}, {"Muon"}}};
  for (const auto& [given, by_name] : pairs) {
    CAPTURE(by_name.name);
    CHECK(mlx_opt::definition(given).program.rule() == mlx_opt::definition(by_name).program.rule());
    CHECK(numbers(given) == numbers(by_name));
  }
}

TEST_CASE("a slot with a format of its own leaves the parameter its dtype") {
  const RuleByName hypers = {"AdEMAMix"};
  mlx_opt::Arrays w = {mx::ones({5}, mx::bfloat16)};
  mlx_opt::Arrays state = mlx_opt::initial_state(hypers, w);
  REQUIRE(mlx_opt::state_names(hypers, 1) == std::vector<std::string_view>{"m1", "m2", "v"});
  CHECK(state[0].dtype() == mx::bfloat16);
  CHECK(state[1].dtype() == mx::float32);
  CHECK(state[2].dtype() == mx::bfloat16);
  mlx_opt::update(w, {mx::ones({5})}, state, hypers, mx::array(0.1f), mx::array(1));
  mx::eval(state);
  CHECK(w[0].dtype() == mx::bfloat16);
  CHECK(state[0].dtype() == mx::float32);
  CHECK(state[1].dtype() == mx::float32);
  CHECK(state[1].data<float>()[0] == doctest::Approx(1e-4).epsilon(1e-6));
}

TEST_CASE("a slot that begins unset is NaN, and the first step gives it its value") {
  const RuleByName hypers = {"MADGRAD"};
  mlx_opt::Arrays w = {mx::full({5}, 3.0f, mx::bfloat16)};
  mlx_opt::Arrays state = mlx_opt::initial_state(hypers, w);
  REQUIRE(mlx_opt::state_names(hypers, 1) == std::vector<std::string_view>{"s", "v", "x0"});
  CHECK_FALSE(mx::any(state[1]).item<bool>());
  CHECK(mx::all(mx::isnan(state[2])).item<bool>());
  for (int step = 1; step <= 2; ++step) {
    mlx_opt::update(w, {mx::ones({5})}, state, hypers, mx::array(0.1f), mx::array(step));
    mx::eval(state);
    CHECK(state[2].dtype() == mx::float32);
    CHECK(mx::all(mx::equal(state[2], mx::array(3.0f))).item<bool>());
  }
}

TEST_CASE("a number that a rule keeps is no hyperparameter that can be set") {
  CHECK_THROWS_WITH_AS(
      mlx_opt::definition(RuleByName{"NAdam", {{"mu_product", 0.5}}}),
      "mlx_opt NAdam: there is no hyperparameter mu_product",
      std::invalid_argument);
  mlx_opt::Arrays w = {mx::ones({5})};
  mlx_opt::Arrays state = mlx_opt::initial_state(RuleByName{"NAdam"}, w);
  CHECK_THROWS_WITH_AS(
      mlx_opt::update(w, {w[0]}, state, RuleByName{"NAdam"}, mx::array(0.1f), mx::array(1)),
      "mlx_opt NAdam: Optimizer alone keeps its mu_product",
      std::invalid_argument);
}

TEST_CASE("a hyperparameter out of its range is refused by name") {
  CHECK_THROWS_WITH_AS(
      mlx_opt::definition(RuleByName{"AdEMAMix", {{"betas[2]", 1.0}}}),
      "mlx_opt AdEMAMix: betas[2]: expected a number in [0, 1), got 1",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      mlx_opt::definition(RuleByName{"Signum", {{"momentum", 0.9}}}),
      "mlx_opt Signum: there is no hyperparameter momentum",
      std::invalid_argument);
}
