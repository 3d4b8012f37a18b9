// Compiles the kernels as a first step on a GPU would, without needing the GPU.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "cuda_kernels.h"
#include "mlx_opt/backend/cuda/kernel_source.h"
#include "mlx_opt/backend/cuda/nvrtc.h"

using namespace mlx_opt::cuda;
using namespace cuda_kernels;
using mlx_opt::Rule;

namespace {

const Architecture architectures[] = {75, 80, 90, 100};
const Architecture oldest_and_usual[] = {75, 90};

// The log of each kernel, or the compiler's error.
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
  for (Architecture architecture : oldest_and_usual) {
    check_all(uniform_kernels(), architecture);
  }
  // The other walks and storages would take another minute and a half.
  std::vector<Kernel> straight = uniform_kernels();
  std::erase_if(straight, [](const Kernel& kernel) {
    const auto* update = std::get_if<UpdateKernel>(&kernel);
    return update && (update->walk != Walk::flat || update->in[0] != Storage::float32);
  });
  for (Architecture architecture : {80, 100}) {
    check_all(straight, architecture);
  }
}

TEST_CASE("kernels that scale the gradient compile") {
  for (mlx_opt::Scaling scaling : {mlx_opt::Scaling::always, mlx_opt::Scaling::if_finite}) {
    for (Rule rule : {Rule::AdamW, Rule::Lamb}) {
      check_all(uniform_kernels(rule, scaling), 75);
      check_all(uniform_kernels(rule, scaling), 90);
    }
  }
}

TEST_CASE("the kernel of the scalars compiles for several groups") {
  check_all({PrepareKernel{"AdamW", 5, 30}, PrepareKernel{"SignSGD", 1, 102}}, 90);
}

TEST_CASE("the kernels of the norm compile") {
  for (Architecture architecture : architectures) {
    check_all(norm_kernels(), architecture);
  }
}

TEST_CASE("the kernels of Adafactor compile") {
  for (Architecture architecture : architectures) {
    check_all(adafactor_kernels(), architecture);
  }
}

TEST_CASE("mixes of storages compile") {
  check_all(mixed_kernels(), 75);
  check_all(mixed_kernels(), 90);
}

TEST_CASE("kernels of master weights compile") {
  for (Rule rule : {Rule::AdamW, Rule::SGD}) {
    check_all(kernels_of_masters(rule), 75);
    check_all(kernels_of_masters(rule), 90);
  }
}

TEST_CASE("kernels that round stochastically compile") {
  for (Rule rule : {Rule::AdamW, Rule::SGD}) {
    check_all(kernels_with_rounding(rule), 75);
    check_all(kernels_with_rounding(rule), 90);
  }
}

TEST_CASE("kernels of slots of codes compile") {
  check_all(kernels_of_codes(Rule::AdamW), 75);
  check_all(kernels_of_codes(Rule::AdamW), 90);
  check_all(kernels_of_codes(Rule::Lion), 90);
  std::vector<Kernel> of_all_rules;
  for (int i = 0; i < mlx_opt::elementwise_rules; ++i) {
    if (mlx_opt::rule_infos[i].slots > 0) {
      of_all_rules.push_back(kernel_of_codes(static_cast<Rule>(i), Walk::flat, Storage::float32));
    }
  }
  check_all(of_all_rules, 90);
}

TEST_CASE("kernels with averages of the weights compile") {
  check_all(kernels_with_ema(Rule::AdamW), 75);
  check_all(kernels_with_ema(Rule::SGD), 90);
}

TEST_CASE("a rule of six states compiles, with a record of its width") {
  for (Walk walk : walks) {
    const UpdateKernel kernel = six_states(walk);
    std::string log;
    compile(source(kernel, six_states_header), target_option(90), &log);
    CAPTURE(log);
    CHECK(log.find("0 bytes stack frame, 0 bytes spill stores") != std::string::npos);
  }
}

TEST_CASE("an architecture that the compiler does not know") {
  CHECK(target_option(90) == "--gpu-architecture=sm_90");
  CHECK(target_option(9990).find("--gpu-architecture=compute_") == 0);
  CHECK_THROWS_WITH_AS(
      target_option(30), doctest::Contains("compute capability 3.0"), std::runtime_error);
  CHECK_THROWS_WITH_AS(target_option(30), doctest::Contains("mlx[cuda12]"), std::runtime_error);
}

TEST_CASE("newer hardware is served by intermediate code") {
  const Kernel kernel = uniform(Rule::AdamW, Walk::flat, Storage::float32, 56);
  const auto code = compile(source(kernel), target_option(9990), nullptr);
  CHECK(code.find(".entry mlx_opt_kernel") != std::string::npos);
}

TEST_CASE("what does not compile is told with the compiler's log") {
  CHECK_THROWS_WITH_AS(
      compile("nonsense", target_option(90), nullptr),
      doctest::Contains("nonsense"),
      std::runtime_error);
}
