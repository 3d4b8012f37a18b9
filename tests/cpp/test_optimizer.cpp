// The optimizer over named parameters.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include <unistd.h>

#include "mlx/mlx.h"
#include "optimizers.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;

namespace {

NamedArrays parameters() {
  return {{"bias", mx::full({3}, 0.5f)}, {"layers.0.weight", mx::full({2, 3}, 1.0f)}};
}

NamedArrays gradients() {
  return {{"bias", mx::full({3}, 0.25f)}, {"layers.0.weight", mx::full({2, 3}, -2.0f)}};
}

bool equal(const NamedArrays& a, const NamedArrays& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
           return x.first == y.first && x.second.dtype() == y.second.dtype() &&
                  mx::array_equal(x.second, y.second).template item<bool>();
         });
}

template <typename Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// A file that is gone at the end of the test.
class File {
 public:
  explicit File(const std::string& name)
      : path_("/tmp/mlx_opt_" + std::to_string(getpid()) + "_" + name + ".safetensors") {}
  ~File() {
    std::remove(path_.c_str());
  }

  const std::string& path() const {
    return path_;
  }

  std::string bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  void write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

} // namespace

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
      CHECK(state.at("skipped").dtype() == mx::uint64);
      auto broken = gradients();
      broken.at("bias") = broken.at("bias") + mx::array({0.0f, bad, 0.0f});
      optimizer.update(named, broken, clip);
      CHECK(equal(named, before));
      CHECK(optimizer.step() == 1);
      CHECK(optimizer.skipped() == 1);
      CHECK_FALSE(std::isfinite(optimizer.grad_norm()->item<float>()));
      auto after = optimizer.state();
      after.insert_or_assign("skipped", state.at("skipped"));
      after.insert_or_assign("grad_norm", state.at("grad_norm"));
      CHECK(equal(after, state));
      // And it goes on as if that gradient had never been, clipped or not.
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

TEST_CASE("steps of the optimizer are in place from the second on") {
  NamedArrays named = {{"w", mx::full({1000}, 1.0f, mx::Device::cpu)}};
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1);
  const float *own = nullptr, *moment = nullptr;
  for (int i = 0; i < 4; ++i) {
    optimizer.update(named, {{"w", mx::full({1000}, 1.0f)}}, {}, mx::Device::cpu);
    mx::eval(mlx_opt::values(named));
    mx::eval(optimizer.values());
    if (i == 0) {
      own = named.at("w").data<float>();
      moment = optimizer.state().at("w.m").data<float>();
    }
    CHECK(named.at("w").data<float>() == own);
    CHECK(optimizer.state().at("w.m").data<float>() == moment);
  }
}

TEST_CASE("a step runs at once where all is evaluated and held by nobody else") {
  for (const auto& [name, hypers, formula] : optimizers::elementwise()) {
    CAPTURE(name);
    auto named = parameters(), lazy = parameters();
    Optimizer optimizer(named, hypers, 0.1), graph(lazy, hypers, 0.1);
    for (int i = 0; i < 4; ++i) {
      auto evaluated = gradients();
      mx::eval(mlx_opt::values(evaluated));
      const auto id = named.at("bias").id();
      optimizer.update(named, std::move(evaluated));
      // The first state is lazy.
      CHECK((named.at("bias").id() == id) == (i > 0));
      CHECK((named.at("bias").status() == mx::array::Status::evaluated) == (i > 0));
      graph.update(lazy, gradients());
      CHECK(lazy.at("bias").status() == mx::array::Status::unscheduled);
      mx::eval(mlx_opt::values(named));
      mx::eval(optimizer.values());
    }
    CHECK(equal(named, lazy));
    CHECK(equal(optimizer.state(), graph.state()));
  }
}

TEST_CASE("a copy that is kept of a parameter or its state does not change") {
  auto named = parameters();
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1);
  const auto update = [&] {
    auto evaluated = gradients();
    mx::eval(mlx_opt::values(evaluated));
    optimizer.update(named, std::move(evaluated));
    mx::eval(mlx_opt::values(named));
    mx::eval(optimizer.values());
  };
  update();
  update();
  const mx::array bias = named.at("bias"), moment = optimizer.state().at("layers.0.weight.m");
  const mx::array view = mx::slice(named.at("layers.0.weight"), {0, 0}, {1, 3});
  mx::eval(view);
  const NamedArrays kept = {{"bias", bias}, {"m", moment}, {"view", view}};
  const NamedArrays before = {
      {"bias", mx::copy(bias)},
      {"m", mx::copy(moment)},
      {"view", mx::contiguous(view) + mx::array(0.0f)}};
  mx::eval(mlx_opt::values(before));
  update();
  update();
  CHECK(equal(kept, before));
  CHECK_FALSE(mx::array_equal(named.at("bias"), bias).item<bool>());
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

TEST_CASE("an optimizer of parameters that it cannot update is not made") {
  CHECK_THROWS_WITH_AS(
      Optimizer({{"ids", mx::zeros({3}, mx::uint32)}}, mlx_opt::SGD{}, 0.1),
      "mlx_opt: ids: parameter must be float32, float16 or bfloat16, got uint32",
      std::invalid_argument);
  CHECK_THROWS_AS(Optimizer({}, mlx_opt::Lion{.beta1 = 2.0}, 0.1), std::invalid_argument);
}

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
  CHECK_FALSE(plain.contains("grad_norm"));
  CHECK_FALSE(plain.contains("skipped"));
  optimizer.update(named, gradients(), {.max_norm = 1.0});
  CHECK(optimizer.state().contains("grad_norm"));
  CHECK_FALSE(optimizer.state().contains("skipped"));
  optimizer.update(named, {{"bias", mx::full({3}, NAN)}}, {.skip_nonfinite = true});
  CHECK(optimizer.state().contains("skipped"));
  optimizer.set_state(plain);
  CHECK(equal(optimizer.state(), plain));
  CHECK(optimizer.step() == 0);
  CHECK(optimizer.skipped() == 0);
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
      message("skipped", &real) ==
      "mlx_opt: the state's \"skipped\" must be one integer, got float32 of shape ()");
  CHECK(
      message("grad_norm", &halves) ==
      "mlx_opt: the state's \"grad_norm\" must be one real number, got float32 of shape (2,)");
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
