#include <doctest/doctest.h>

#include <atomic>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mlx_opt/backend/cpu/pool.h"

using namespace mlx_opt::cpu;

namespace {

struct Threads {
  explicit Threads(int threads) {
    set_num_threads(threads);
  }
  ~Threads() {
    set_num_threads(2);
  }
};

} // namespace

TEST_CASE("every task runs once") {
  for (int threads : {1, 2, 7}) {
    const Threads scope(threads);
    for (int64_t count : {0, 1, 2, 1000}) {
      std::vector<int> runs(count, 0);
      parallel_for(count, [&](int64_t i) { ++runs[i]; });
      CHECK(std::accumulate(runs.begin(), runs.end(), int64_t{0}) == count);
      CHECK(std::set<int>(runs.begin(), runs.end()).size() <= 1);
    }
  }
}

TEST_CASE("what the tasks wrote is seen after the call") {
  const Threads scope(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int64_t> squares(64);
    parallel_for(64, [&](int64_t i) { squares[i] = i * i; });
    CHECK(std::accumulate(squares.begin(), squares.end(), int64_t{0}) == 85344);
  }
}

TEST_CASE("calls from several threads do not disturb each other") {
  const Threads scope(3);
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        parallel_for(32, [&](int64_t i) { total += i; });
      }
    });
  }
  for (auto& caller : callers) {
    caller.join();
  }
  CHECK(total == 4 * 100 * 496);
}

TEST_CASE("a number of threads that makes no sense is refused") {
  CHECK_THROWS_AS(set_num_threads(0), std::invalid_argument);
  CHECK_THROWS_AS(set_num_threads(-1), std::invalid_argument);
  CHECK_THROWS_AS(set_num_threads(100000), std::invalid_argument);
}
