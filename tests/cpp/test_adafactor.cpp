// Adafactor, whose state and step depend on whole tensors.
#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "mlx/mlx.h"
#include "mlx_opt/mlx_opt.h"

namespace mx = mlx::core;
using mlx_opt::Adafactor;
using mlx_opt::Arrays;
using mlx_opt::NamedArrays;
using Values = std::vector<double>;

namespace {

struct Case {
  std::string name;
  Adafactor hypers;
};

const std::vector<Case> cases = {
    {"as it is", {}},
    {"warming up", {.warmup_init = true}},
    {"with a learning rate", {.scale_parameter = false, .relative_step = false}},
    {"with everything",
     {.eps = {1e-6, 1e-2},
      .clip_threshold = 0.5,
      .decay_rate = -0.6,
      .beta_1 = 0.9,
      .weight_decay = 0.1}},
};

double rms(const Values& x) {
  double total = 0;
  for (double value : x) {
    total += value * value;
  }
  return std::sqrt(total / x.size());
}

// A matrix of `rows` x `columns`, or a vector where there are no rows, in double precision.
struct Reference {
  size_t rows, columns;
  Values w;
  Values row_means = Values(rows, 0.0), column_means = Values(columns, 0.0);
  Values first_moment = Values(w.size(), 0.0);

  void average(double& mean, double square, double beta2, const Adafactor& h) {
    mean = beta2 * mean + (1 - beta2) * (square + h.eps.first);
  }

  Values factored_update(const Values& g, double beta2, const Adafactor& h) {
    Values of_rows(rows, 0.0), of_columns(columns, 0.0);
    for (size_t i = 0; i < g.size(); ++i) {
      of_rows[i / columns] += g[i] * g[i] / columns;
      of_columns[i % columns] += g[i] * g[i] / rows;
    }
    double mean = 0;
    for (size_t i = 0; i < rows; ++i) {
      average(row_means[i], of_rows[i], beta2, h);
      mean += row_means[i] / rows;
    }
    for (size_t i = 0; i < columns; ++i) {
      average(column_means[i], of_columns[i], beta2, h);
    }
    Values u(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      u[i] = g[i] / std::sqrt(row_means[i / columns] / mean * column_means[i % columns]);
    }
    return u;
  }

  Values plain_update(const Values& g, double beta2, const Adafactor& h) {
    Values u(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      average(column_means[i], g[i] * g[i], beta2, h);
      u[i] = g[i] / std::sqrt(column_means[i]);
    }
    return u;
  }

  void step(const Values& g, const Adafactor& h, double learning_rate, int step) {
    const double beta2 = 1 - std::pow(step, h.decay_rate);
    const double relative = std::min(h.warmup_init ? 1e-6 * step : 1e-2, 1 / std::sqrt(step));
    const double lr = (h.relative_step ? relative : learning_rate) *
                      (h.scale_parameter ? std::max(h.eps.second, rms(w)) : 1.0);
    const Values u = rows ? factored_update(g, beta2, h) : plain_update(g, beta2, h);
    const double clip = std::max(1.0, rms(u) / h.clip_threshold);
    const double beta1 = h.beta_1.value_or(0.0);
    for (size_t i = 0; i < w.size(); ++i) {
      first_moment[i] = beta1 * first_moment[i] + (1 - beta1) * lr * u[i] / clip;
      w[i] -= lr * h.weight_decay * w[i] + first_moment[i];
    }
  }
};

Values some(size_t size, int seed) {
  Values x(size);
  for (size_t i = 0; i < size; ++i) {
    x[i] = static_cast<float>(std::sin(1.7 * i + seed) + 0.3);
  }
  return x;
}

mx::array array_of(const Values& x, const mx::Shape& shape) {
  return mx::array(x.begin(), shape, mx::float32);
}

void check_close(mx::array x, const Values& expected) {
  x.eval();
  REQUIRE(x.size() == expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(x.data<float>()[i] == doctest::Approx(expected[i]).epsilon(2e-6));
  }
}

NamedArrays parameters() {
  return {{"bias", array_of(some(5, 1), {5})}, {"weight", array_of(some(21, 2), {3, 7})}};
}

NamedArrays gradients(int step) {
  return {
      {"bias", array_of(some(5, 3 + step), {5})}, {"weight", array_of(some(21, 4 + step), {3, 7})}};
}

} // namespace

TEST_CASE("Adafactor follows its formula") {
  constexpr double lr = 0.02;
  for (const auto& [name, hypers] : cases) {
    CAPTURE(name);
    auto named = parameters();
    mlx_opt::Optimizer optimizer(named, hypers, lr);
    Reference bias{0, 5, some(5, 1)}, weight{3, 7, some(21, 2)};
    for (int step = 1; step <= 4; ++step) {
      optimizer.update(named, gradients(step));
      bias.step(some(5, 3 + step), hypers, float(lr), step);
      weight.step(some(21, 4 + step), hypers, float(lr), step);
    }
    check_close(named.at("bias"), bias.w);
    check_close(named.at("weight"), weight.w);
    const auto state = optimizer.state();
    check_close(state.at("bias.exp_avg_sq"), bias.column_means);
    check_close(state.at("weight.exp_avg_sq_row"), weight.row_means);
    check_close(state.at("weight.exp_avg_sq_col"), weight.column_means);
    if (hypers.beta_1) {
      check_close(state.at("weight.exp_avg"), weight.first_moment);
    }
    CHECK(state.size() == (hypers.beta_1 ? 7 : 5));
  }
}

TEST_CASE("the function of Adafactor does what the optimizer does") {
  for (const auto& [name, hypers] : cases) {
    CAPTURE(name);
    auto named = parameters();
    Arrays arrays = mlx_opt::values(named);
    mlx_opt::Optimizer optimizer(named, hypers, 0.02);
    Arrays state = mlx_opt::initial_state(hypers, arrays);
    for (int step = 1; step <= 3; ++step) {
      optimizer.update(named, gradients(step));
      mlx_opt::adafactor(arrays, mlx_opt::values(gradients(step)), state, hypers, 0.02, step);
    }
    CHECK(mx::array_equal(named.at("bias"), arrays[0]).item<bool>());
    CHECK(mx::array_equal(named.at("weight"), arrays[1]).item<bool>());
  }
}

TEST_CASE("Adafactor's state has the shapes of Python's") {
  const mlx_opt::Hyperparameters hypers = Adafactor{.beta_1 = 0.9};
  CHECK(mlx_opt::state_names(hypers, 1) == std::vector<std::string_view>{"exp_avg_sq", "exp_avg"});
  CHECK(
      mlx_opt::state_names(hypers, 3) ==
      std::vector<std::string_view>{"exp_avg_sq_row", "exp_avg_sq_col", "exp_avg"});
  const NamedArrays named = {{"w", mx::zeros({2, 3, 4}, mx::bfloat16)}};
  const auto state = mlx_opt::Optimizer(named, hypers).state();
  CHECK(state.at("w.exp_avg_sq_row").shape() == mx::Shape{2, 3});
  CHECK(state.at("w.exp_avg_sq_col").shape() == mx::Shape{2, 4});
  CHECK(state.at("w.exp_avg").shape() == mx::Shape{2, 3, 4});
  CHECK(state.at("w.exp_avg").dtype() == mx::bfloat16);
}

TEST_CASE("only a relative step can do without a learning rate") {
  auto named = parameters();
  mlx_opt::Optimizer relative(named, Adafactor{});
  CHECK_FALSE(relative.state().contains("learning_rate"));
  CHECK_THROWS_AS(relative.learning_rate(), std::bad_optional_access);
  mlx_opt::Optimizer other(named, Adafactor{}, 0.5);
  relative.set_state(other.state());
  CHECK(relative.learning_rate() == 0.5);
  for (const mlx_opt::Hyperparameters& hypers :
       std::vector<mlx_opt::Hyperparameters>{Adafactor{.relative_step = false}, mlx_opt::AdamW{}}) {
    CHECK_THROWS_WITH_AS(
        mlx_opt::Optimizer(named, hypers),
        "mlx_opt: this optimizer needs a learning rate",
        std::invalid_argument);
  }
  mlx_opt::Optimizer needing(named, Adafactor{.relative_step = false}, 0.5);
  auto state = needing.state();
  state.erase("learning_rate");
  CHECK_THROWS_WITH_AS(
      needing.set_state(state),
      "mlx_opt: the state has no \"learning_rate\"",
      std::invalid_argument);
}

TEST_CASE("a step of Adafactor that fails names the parameter and changes nothing") {
  Arrays w = {mx::ones({5}), mx::ones({3, 7})};
  Arrays state = mlx_opt::initial_state(Adafactor{}, w);
  const auto before = w[0].id(), state_before = state[0].id();
  const auto step = [&](const mx::array& g) {
    mlx_opt::adafactor(w, {mx::ones({5}), g}, state, {}, 0.0, 1);
  };
  CHECK_THROWS_WITH_AS(
      step(mx::ones({7, 3})),
      "mlx_opt: parameter 1: gradient (7, 3), parameter (3, 7)",
      std::invalid_argument);
  std::swap(state[1], state[2]);
  CHECK_THROWS_WITH_AS(
      step(mx::ones({3, 7})),
      "mlx_opt: parameter 1: state exp_avg_sq_row (7,), expected (3,)",
      std::invalid_argument);
  state.pop_back();
  CHECK_THROWS_WITH_AS(
      step(mx::ones({3, 7})), "mlx_opt: expected 3 arrays of state, got 2", std::invalid_argument);
  CHECK(w[0].id() == before);
  CHECK(state[0].id() == state_before);
}
