// The optimizers as functions.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "mlx/mlx.h"
#include "optimizers.h"

namespace mx = mlx::core;
using mlx_opt::Arrays;

namespace {

const std::vector<float> start = {0.5f, -1.0f, 2.0f, 0.0f};
const std::vector<float> slope = {0.25f, 0.5f, -1.0f, 2.0f};

mx::array vector_of(const std::vector<float>& values) {
  return mx::array(values.data(), {static_cast<int>(values.size())});
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

} // namespace

TEST_CASE("every optimizer follows its formula") {
  constexpr double lr = 0.01;
  for (const auto& [name, hypers, formula] : optimizers::elementwise()) {
    CAPTURE(name);
    Arrays w = {vector_of(start)};
    Arrays state = mlx_opt::initial_state(hypers, w);
    for (int step = 1; step <= 4; ++step) {
      const mx::array g = mx::array(float(step)) * vector_of(slope);
      mlx_opt::update(w, {g}, state, hypers, mx::array(float(lr)), mx::array(step));
    }
    mx::eval(w);
    for (size_t i = 0; i < start.size(); ++i) {
      double expected = start[i];
      optimizers::Values slots(state.size(), 0.0);
      for (int step = 1; step <= 4; ++step) {
        formula(expected, slots, double(slope[i]) * step, lr, step);
      }
      CHECK(w[0].data<float>()[i] == doctest::Approx(expected).epsilon(1e-6));
    }
  }
}

TEST_CASE("a function of an optimizer's name takes numbers or arrays") {
  Arrays w = {vector_of(start)}, v = {vector_of(start)};
  const mlx_opt::AdamW hypers = {.weight_decay = 0.1, .bias_correction = true};
  Arrays of_w = mlx_opt::initial_state(hypers, w), of_v = of_w;
  mlx_opt::adamw(w, {vector_of(slope)}, of_w, hypers, 0.01, 3);
  mlx_opt::adamw(v, {vector_of(slope)}, of_v, hypers, mx::array(0.01f), mx::array(3));
  CHECK(mx::array_equal(w[0], v[0]).item<bool>());
  CHECK(mx::array_equal(of_w[1], of_v[1]).item<bool>());
  CHECK_FALSE(mx::array_equal(w[0], vector_of(start)).item<bool>());
}

// The first state is zeros without memory of their own, so the first step allocates its buffers.
TEST_CASE("a step is in place where nobody else holds the arrays") {
  Arrays w = {mx::full({1000}, 1.0f)};
  Arrays state = mlx_opt::initial_state(mlx_opt::AdamW{}, w);
  const float *own = nullptr, *slot = nullptr;
  for (int step = 1; step <= 4; ++step) {
    mlx_opt::adamw(w, {mx::full({1000}, 1.0f)}, state, {}, 0.01, step, {}, mx::Device::cpu);
    mx::eval(w);
    mx::eval(state);
    if (step == 1) {
      own = w[0].data<float>();
      slot = state[1].data<float>();
    }
    CHECK(w[0].data<float>() == own);
    CHECK(state[1].data<float>() == slot);
  }
}

TEST_CASE("plain SGD leaves its state alone") {
  Arrays w = {vector_of(start)}, state = {vector_of(slope)};
  mlx_opt::sgd(w, {vector_of(slope)}, state, {}, 0.1, 1);
  CHECK(mx::array_equal(state[0], vector_of(slope)).item<bool>());
}

TEST_CASE("the scale brings the norm to the greatest one") {
  const auto scale = [](float norm, const mlx_opt::Clip& clip) {
    return mlx_opt::gradient_scale(mx::array(norm), clip).value.item<float>();
  };
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(scale(5.0f, {}) == 1.0f);
  CHECK(scale(0.5f, {.max_norm = 1.0}) == 1.0f);
  CHECK(scale(5.0f, {.max_norm = 1.0}) == doctest::Approx(1.0 / (5.0 + 1e-6)).epsilon(1e-7));
  CHECK(scale(0.0f, {.max_norm = 0.0}) == 0.0f);
  CHECK(scale(infinity, {.max_norm = 1.0}) == 0.0f);
  CHECK(std::isnan(scale(infinity, {.max_norm = 1.0, .skip_nonfinite = true})));
  CHECK(std::isnan(scale(NAN, {.skip_nonfinite = true})));
  CHECK(scale(5.0f, {.skip_nonfinite = true}) == 1.0f);
  CHECK_THROWS_WITH_AS(
      scale(5.0f, {.max_norm = -1.0}),
      "mlx_opt: max_norm should be >=0, -1 was provided instead",
      std::invalid_argument);
}

TEST_CASE("every optimizer follows its formula with clipped gradients") {
  constexpr double lr = 0.01, max_norm = 0.5;
  double norm = 0;
  for (float g : slope) {
    norm += double(g) * g;
  }
  norm = std::sqrt(norm);
  for (const auto& [name, hypers, formula] : optimizers::elementwise()) {
    CAPTURE(name);
    Arrays w = {vector_of(start)};
    Arrays state = mlx_opt::initial_state(hypers, w);
    for (int step = 1; step <= 3; ++step) {
      const Arrays g = {vector_of(slope)};
      mx::array norm_of_g = mlx_opt::global_norm(g);
      CHECK(norm_of_g.item<float>() == doctest::Approx(norm).epsilon(1e-7));
      const auto scale = mlx_opt::gradient_scale(norm_of_g, {.max_norm = max_norm});
      mlx_opt::update(w, g, state, hypers, mx::array(float(lr)), mx::array(step), scale);
    }
    mx::eval(w);
    for (size_t i = 0; i < start.size(); ++i) {
      double expected = start[i];
      optimizers::Values slots(state.size(), 0.0);
      for (int step = 1; step <= 3; ++step) {
        formula(expected, slots, slope[i] * max_norm / (norm + 1e-6), lr, step);
      }
      CHECK(w[0].data<float>()[i] == doctest::Approx(expected).epsilon(1e-6));
    }
  }
}

TEST_CASE("a step can be compiled") {
  const auto step = mx::compile([](const Arrays& x) {
    Arrays w = {x[0]}, m = {x[1]};
    mlx_opt::lion(w, {x[2]}, m, {}, x[3], x[4]);
    return Arrays{w[0], m[0]};
  });
  Arrays w = {vector_of(start)}, m = {mx::zeros({4})};
  Arrays compiled = {w[0], m[0]};
  for (int i = 1; i <= 3; ++i) {
    const mx::array rate(0.1f * i), count(i, mx::uint64);
    compiled = step({compiled[0], compiled[1], vector_of(slope), rate, count});
    mlx_opt::lion(w, {vector_of(slope)}, m, {}, rate, count);
    CHECK(mx::array_equal(compiled[0], w[0]).item<bool>());
    CHECK(mx::array_equal(compiled[1], m[0]).item<bool>());
  }
}

TEST_CASE("a step cannot be differentiated, and says so") {
  const auto loss = [](const mx::array& x) {
    Arrays w = {x}, v = {mx::zeros_like(x)};
    mlx_opt::sgd(w, {mx::ones_like(x)}, v, {}, 0.1, 1);
    return mx::sum(w[0]);
  };
  CHECK(message_of([&] {
          mx::grad(loss)(vector_of(start));
        }) == "mlx_opt: a step cannot be differentiated");
}

TEST_CASE("no parameters are no work") {
  Arrays none, state;
  mlx_opt::lion(none, {}, state, {}, 0.1, 1);
  CHECK(none.empty());
}

TEST_CASE("an argument that does not fit is named, and nothing changes") {
  Arrays w = {mx::zeros({2}), mx::zeros({4, 8})};
  const Arrays g = {mx::ones({2}), mx::ones({4, 8})};
  Arrays m = {mx::zeros({2}), mx::zeros({4, 8})};
  const auto lion = [&](const Arrays& gradients, const mlx_opt::Lion& hypers = {}) {
    return message_of([&] { mlx_opt::lion(w, gradients, m, hypers, 0.1, 1); });
  };
  const auto before = w[0].id();

  CHECK(lion({g[0]}) == "mlx_opt: expected 2 gradients, got 1");
  CHECK(
      lion({g[0], mx::ones({8, 4})}) == "mlx_opt: parameter 1: gradient (8, 4), parameter (4, 8)");
  CHECK(
      lion({g[0], mx::astype(g[1], mx::int32)}) ==
      "mlx_opt: parameter 1: gradient must be float32, float16 or bfloat16, got int32");
  CHECK(lion(g, {.beta1 = 1.0}) == "mlx_opt Lion: betas[0]: expected a number in [0, 1), got 1");
  m[1] = mx::zeros({8, 4});
  CHECK(lion(g) == "mlx_opt: parameter 1: state m (8, 4), expected (4, 8)");
  m.pop_back();
  CHECK(lion(g) == "mlx_opt: expected 2 arrays of state, got 1");
  m.push_back(mx::zeros({4, 8}));
  w[1] = mx::astype(w[1], mx::complex64);
  CHECK(
      lion(g) ==
      "mlx_opt: parameter 1: parameter must be float32, float16 or bfloat16, got complex64");
  CHECK(w[0].id() == before);
}

TEST_CASE("hyperparameters out of their range are refused") {
  using namespace mlx_opt;
  for (const Hyperparameters& hypers : std::vector<Hyperparameters>{
           SGD{.nesterov = true},
           SGD{.momentum = 0.9, .dampening = 0.1, .nesterov = true},
           RMSprop{.alpha = -1.0},
           RMSprop{.eps = 0.0},
           Adagrad{.eps = 0.0},
           AdaDelta{.rho = -1.0},
           AdaDelta{.eps = 0.0},
           Adam{.beta1 = -0.1},
           Adam{.eps = -1.0},
           AdamW{.beta2 = 1.0},
           Adamax{.beta2 = 1.0},
           Adamax{.eps = -1.0},
           Lion{.beta2 = 1.0},
           Adafactor{.eps = {-1.0, 1.0}},
           Adafactor{.eps = {1.0, -1.0}},
           Adafactor{.clip_threshold = 0.0},
           Adafactor{.decay_rate = 0.1},
           Adafactor{.beta_1 = 1.0},
           Muon{.momentum = 1.0},
           Muon{.ns_steps = -1},
           Muon{.ns_dtype = mx::int32},
           Muon{.ns_coefficients = {}}}) {
    CAPTURE(hypers.index());
    CHECK_THROWS_AS(initial_state(hypers, {mx::zeros({2})}), std::invalid_argument);
  }
}

TEST_CASE("the header and the library are of one version, and of the MLX that runs") {
  CHECK(std::string(mlx_opt::version()) == MLX_OPT_VERSION);
  CHECK(std::string(mx::version()) == MLX_OPT_MLX_VERSION);
}
