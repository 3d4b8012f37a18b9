// Steps of the optimizer that overwrite arrays, and steps that must not.
#include <doctest/doctest.h>

#include <variant>

#include "mlx/mlx.h"
#include "mlx_opt/eager/in_place.h"
#include "mlx_opt/graph/small_step.h"
#include "optimizers.h"
#include "trees.h"

namespace mx = mlx::core;
using mlx_opt::NamedArrays;
using mlx_opt::Optimizer;
using mlx_opt::Program;
using mlx_opt::Rule;
using namespace trees;

namespace {

// A step of one leaf with all hyperparameters 0.
mlx_opt::Part part_of(const Program& program, size_t kind, std::vector<mx::array>& operands) {
  const std::vector<mlx_opt::Scalar> hypers(mlx_opt::hypers_of(program.rule()).size(), 0.0);
  const mx::Stream stream = mx::default_stream(mx::Device::cpu);
  mlx_opt::Leaves leaves(program);
  auto& arrays = leaves.add(kind).arrays;
  for (mx::array& x : operands) {
    arrays.push_back(&x);
  }
  return {{&program, {{hypers, mx::array(0.1f), mx::array(1, mx::uint64)}}, {}, stream}, leaves};
}

} // namespace

TEST_CASE("steps of the optimizer are in place from the second on") {
  NamedArrays named = {{"w", mx::full({1000}, 1.0f, mx::Device::cpu)}};
  Optimizer optimizer(named, mlx_opt::AdamW{}, 0.1);
  const float *own = nullptr, *slot = nullptr;
  for (int i = 0; i < 4; ++i) {
    optimizer.update(named, {{"w", mx::full({1000}, 1.0f)}}, {}, mx::Device::cpu);
    mx::eval(mlx_opt::values(named));
    mx::eval(optimizer.values());
    if (i == 0) {
      own = named.at("w").data<float>();
      slot = optimizer.state().at("w.m").data<float>();
    }
    CHECK(named.at("w").data<float>() == own);
    CHECK(optimizer.state().at("w.m").data<float>() == slot);
  }
}

TEST_CASE("a step runs at once where all is evaluated and held by nobody else") {
  for (const auto& [name, hypers] : optimizers::all()) {
    CAPTURE(name);
    // Muon's products are a graph.
    const bool may = !std::holds_alternative<mlx_opt::Muon>(hypers);
    auto named = parameters(), lazy = parameters();
    Optimizer optimizer(named, hypers, 0.1), graph(lazy, hypers, 0.1);
    for (int i = 0; i < 4; ++i) {
      auto evaluated = gradients();
      mx::eval(mlx_opt::values(evaluated));
      const auto id = named.at("bias").id();
      optimizer.update(named, std::move(evaluated));
      // The first state is lazy.
      CHECK((named.at("bias").id() == id) == (may && i > 0));
      CHECK((named.at("bias").status() != mx::array::Status::unscheduled) == (may && i > 0));
      graph.update(lazy, gradients());
      CHECK(lazy.at("bias").status() == mx::array::Status::unscheduled);
      mx::eval(mlx_opt::values(named));
      mx::eval(optimizer.values());
    }
    CHECK(equal(named, lazy));
    CHECK(equal(optimizer.state(), graph.state()));
  }
}

TEST_CASE("a small step is done when the call returns, with the results of one that is queued") {
  for (const auto& [name, hypers] : optimizers::all()) {
    if (std::holds_alternative<mlx_opt::Muon>(hypers)) {
      continue; // a graph
    }
    CAPTURE(name);
    std::vector<NamedArrays> results;
    for (const size_t limit : {size_t{0}, mlx_opt::default_small_step}) {
      mlx_opt::set_small_step(limit);
      auto named = parameters();
      Optimizer optimizer(named, hypers, 0.1);
      for (int i = 0; i < 4; ++i) {
        auto evaluated = gradients();
        mx::eval(mlx_opt::values(evaluated));
        optimizer.update(named, std::move(evaluated));
        if (limit > 0 && i > 0 && !std::holds_alternative<mlx_opt::Adafactor>(hypers)) {
          CHECK(named.at("bias").status() == mx::array::Status::available);
        }
        mx::eval(mlx_opt::values(named));
        mx::eval(optimizer.values());
      }
      results.push_back(named);
    }
    CHECK(equal(results[0], results[1]));
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
  const mx::array bias = named.at("bias"), slot = optimizer.state().at("layers.0.weight.m");
  const mx::array view = mx::slice(named.at("layers.0.weight"), {0, 0}, {1, 3});
  mx::eval(view);
  const NamedArrays kept = {{"bias", bias}, {"m", slot}, {"view", view}};
  const NamedArrays before = {
      {"bias", mx::copy(bias)},
      {"m", mx::copy(slot)},
      {"view", mx::contiguous(view) + mx::array(0.0f)}};
  mx::eval(mlx_opt::values(before));
  update();
  update();
  CHECK(equal(kept, before));
  CHECK_FALSE(mx::array_equal(named.at("bias"), bias).item<bool>());
}

TEST_CASE("no part of a step runs if one of them cannot be prepared") {
  std::vector<mx::array> vector = {mx::full({3}, 1.0f), mx::full({3}, 1.0f)};
  // Adafactor finds no rows and columns in a vector that is passed as a matrix.
  std::vector<mx::array> no_matrix(4, mx::array(0.0f));
  for (mx::array& x : no_matrix) {
    x = mx::full({3}, 1.0f);
  }
  mx::eval(vector);
  mx::eval(no_matrix);
  const Program sgd(Rule::SGD), adafactor(Rule::Adafactor);
  const auto run = [&](std::vector<mlx_opt::Part> parts) {
    const bool done =
        mlx_opt::run_in_place(std::move(parts), {}, mx::default_stream(mx::Device::cpu));
    mx::synchronize();
    return done;
  };
  const mlx_opt::Part valid = part_of(sgd, 0, vector), invalid = part_of(adafactor, 1, no_matrix);
  CHECK_THROWS_AS(run({valid, invalid}), std::out_of_range);
  CHECK(vector[0].data<float>()[0] == 1.0f);
  CHECK(no_matrix[0].data<float>()[0] == 1.0f);
  CHECK(run({valid}));
  CHECK(vector[0].data<float>()[0] == 0.9f);
}
