// Compiles the kernels as a GPU's first step would, for GPUs that need not be there.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "mlx_opt/backend/cuda/nvrtc.h"
#include "mlx_opt/backend/cuda/source.h"

using namespace mlx_opt::cuda;
using mlx_opt::Rule;

namespace {

const Architecture architectures[] = {75, 80, 90, 100};
constexpr Storage storages[] = {Storage::float32, Storage::float16, Storage::bfloat16};
constexpr mlx_opt::Scaling scalings[] = {
    mlx_opt::Scaling::none, mlx_opt::Scaling::always, mlx_opt::Scaling::if_finite};
constexpr int rules = std::size(mlx_opt::rule_infos);

Kernel uniform(Rule rule, Kind kind, Storage storage, int capacity) {
  const int moments = mlx_opt::info(rule).moments;
  Kernel kernel{rule, kind, capacity, {}, {}, mlx_opt::Scaling::none};
  std::fill_n(kernel.in, moments + 2, storage);
  std::fill_n(kernel.out, moments + 1, storage);
  return kernel;
}

std::vector<Kernel> uniform_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    kernels.push_back({rule, Kind::prepare, 0, {}, {}, mlx_opt::Scaling::none});
    for (Storage storage : storages) {
      kernels.push_back(uniform(rule, Kind::flat, storage, 454));
      kernels.push_back(uniform(rule, Kind::transposed, storage, 56));
      kernels.push_back(uniform(rule, Kind::strided, storage, 0));
    }
  }
  return kernels;
}

// A parameter, moments and a gradient of storages of their own; the results of others.
std::vector<Kernel> mixed_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < 27; ++i) {
    const Storage w = storages[i % 3];
    const Storage m = storages[i / 3 % 3];
    const Storage g = storages[i / 9];
    const Kind kind = i % 2 ? Kind::flat : i % 4 ? Kind::transposed : Kind::strided;
    const int moments = mlx_opt::rule_infos[i % rules].moments;
    Kernel kernel{
        static_cast<Rule>(i % rules),
        kind,
        kind == Kind::strided ? 0 : 56,
        {},
        {},
        scalings[i / 2 % 3]};
    kernel.in[0] = w;
    std::fill_n(kernel.in + 1, moments, m);
    kernel.in[moments + 1] = g;
    kernel.out[0] = m;
    std::fill_n(kernel.out + 1, moments, g);
    kernels.push_back(kernel);
  }
  return kernels;
}

// The log of each, what the compiler threw where it threw.
std::vector<std::string> compile_all(
    const std::vector<Kernel>& kernels, Architecture architecture) {
  const std::string target = target_option(architecture);
  std::vector<std::string> logs(kernels.size());
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::thread::hardware_concurrency(); ++t) {
    threads.emplace_back([&] {
      for (size_t i; (i = next++) < kernels.size();) {
        try {
          compile(source(kernels[i]), target, &logs[i]);
        } catch (const std::exception& error) {
          logs[i] = error.what();
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  return logs;
}

void check_all(const std::vector<Kernel>& kernels, Architecture architecture) {
  const auto logs = compile_all(kernels, architecture);
  for (size_t i = 0; i < kernels.size(); ++i) {
    CAPTURE(architecture);
    CAPTURE(source(kernels[i]).substr(source(kernels[i]).size() - 400));
    CAPTURE(logs[i]);
    CHECK(logs[i].find("0 bytes stack frame, 0 bytes spill stores") != std::string::npos);
  }
}

} // namespace

TEST_CASE("every rule's kernels compile for every architecture and keep to their registers") {
  for (Architecture architecture : architectures) {
    check_all(uniform_kernels(), architecture);
  }
}

TEST_CASE("kernels that scale the gradient compile") {
  for (mlx_opt::Scaling scaling : {mlx_opt::Scaling::always, mlx_opt::Scaling::if_finite}) {
    std::vector<Kernel> kernels;
    for (Storage storage : storages) {
      for (Kind kind : {Kind::flat, Kind::transposed, Kind::strided}) {
        kernels.push_back(uniform(Rule::AdamW, kind, storage, kind == Kind::strided ? 0 : 56));
        kernels.back().scaling = scaling;
      }
    }
    check_all(kernels, 75);
    check_all(kernels, 90);
  }
}

TEST_CASE("the kernels of the norm compile") {
  std::vector<Kernel> kernels = {{Rule{}, Kind::norm}, {Rule{}, Kind::clip}};
  for (Storage storage : storages) {
    kernels.push_back({Rule{}, Kind::squares, 454, {storage}});
    kernels.push_back({Rule{}, Kind::strided_squares, 0, {storage}});
  }
  for (Architecture architecture : architectures) {
    check_all(kernels, architecture);
  }
}

// Those of a step of Adafactor: parameter, means, first moment, gradient; the results the same but
// for the parameter.
std::vector<Kernel> adafactor_kernels(
    std::array<Storage, 4> in, Storage parameter, bool first_moment, int lanes, int capacity) {
  const auto [w, v, m, g] = in;
  const auto kernel = [&](Kind kind, std::array<Storage, 4> from, std::array<Storage, 3> to) {
    Kernel made{Rule{}, kind, capacity, {}, {}, mlx_opt::Scaling::none, lanes, first_moment};
    std::copy(from.begin(), from.end(), made.in);
    std::copy(to.begin(), to.end(), made.out);
    return made;
  };
  return {
      kernel(Kind::factor_squares, {w, g}, {}),
      kernel(Kind::factor_means, {v, v}, {v, v}),
      kernel(Kind::factor_update_squares, {v, g}, {}),
      kernel(Kind::factor_rates, {}, {}),
      kernel(Kind::factor_update, in, {parameter, v, m})};
}

TEST_CASE("the kernels of Adafactor compile") {
  std::vector<Kernel> kernels = {{Rule{}, Kind::factor_prepare}};
  const auto add = [&](auto... arguments) {
    const auto more = adafactor_kernels(arguments...);
    kernels.insert(kernels.end(), more.begin(), more.end());
  };
  for (Storage s : storages) {
    for (bool first_moment : {false, true}) {
      const int lanes = s == Storage::float32 ? 4 : 8;
      add(std::array{s, s, s, s}, s, first_moment, lanes, 177);
      add(std::array{s, s, s, s}, s, first_moment, 1, 0);
      add(std::array{Storage::float32, Storage::bfloat16, s, Storage::float16},
          s,
          first_moment,
          4,
          22);
    }
  }
  for (Architecture architecture : architectures) {
    check_all(kernels, architecture);
  }
}

TEST_CASE("mixes of storages compile") {
  check_all(mixed_kernels(), 75);
  check_all(mixed_kernels(), 90);
}

TEST_CASE("kernels have numbers of their own") {
  std::set<uint64_t> ids;
  std::set<std::string> sources;
  auto kernels = uniform_kernels();
  for (const Kernel& kernel : mixed_kernels()) {
    kernels.push_back(kernel);
  }
  for (const Kernel& kernel : kernels) {
    ids.insert(kernel.id());
    sources.insert(source(kernel));
  }
  CHECK(ids.size() == sources.size());
}

TEST_CASE("an architecture that the compiler does not know") {
  CHECK(target_option(90) == "--gpu-architecture=sm_90");
  CHECK(target_option(9990).find("--gpu-architecture=compute_") == 0);
  CHECK_THROWS_WITH_AS(
      target_option(30), doctest::Contains("compute capability 3.0"), std::runtime_error);
  CHECK_THROWS_WITH_AS(target_option(30), doctest::Contains("mlx[cuda12]"), std::runtime_error);
}

TEST_CASE("newer hardware is served by intermediate code") {
  const Kernel kernel = uniform(Rule::AdamW, Kind::flat, Storage::float32, 56);
  const auto code = compile(source(kernel), target_option(9990), nullptr);
  CHECK(code.find(".entry mlx_opt_kernel") != std::string::npos);
}

TEST_CASE("what does not compile is told with the compiler's log") {
  CHECK_THROWS_WITH_AS(
      compile("nonsense", target_option(90), nullptr),
      doctest::Contains("nonsense"),
      std::runtime_error);
}
