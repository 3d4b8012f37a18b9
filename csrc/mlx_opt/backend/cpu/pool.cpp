#include "mlx_opt/backend/cpu/pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

namespace mlx_opt::cpu {
namespace {

constexpr int max_threads = 1024;

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

[[noreturn]] void refuse(const char* from, const std::string& given) {
  throw std::invalid_argument(
      std::string(from) + ": the number of threads must be from 1 to " +
      std::to_string(max_threads) + ", got " + given);
}

int default_threads() {
  const char* text = std::getenv("MLX_OPT_NUM_THREADS");
  if (!text || !*text) {
    return usable_cores();
  }
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  if (*end || threads < 1 || threads > max_threads) {
    refuse("MLX_OPT_NUM_THREADS", text);
  }
  return static_cast<int>(threads);
}

// 0 until the number is set or first requested.
std::atomic<int> chosen_threads{0};

// The tasks of one call. A thread that comes late finds `next` past the end and touches nothing
// else.
struct Job {
  const std::function<void(int64_t)>* task;
  int64_t count;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      (*task)(i);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        done.notify_all();
      }
    }
  }

  void wait() {
    for (int64_t seen; (seen = done.load(std::memory_order_acquire)) < count;) {
      done.wait(seen, std::memory_order_acquire);
    }
  }
};

class Pool {
 public:
  void run(int64_t count, const std::function<void(int64_t)>& task) {
    const int threads = static_cast<int>(std::min<int64_t>(num_threads(), count));
    std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
    if (threads <= 1 || !turn.try_lock()) {
      for (int64_t i = 0; i < count; ++i) {
        task(i);
      }
      return;
    }
    auto job = std::make_shared<Job>(&task, count);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_workers(threads - 1);
      job_ = job;
      helpers_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job->work();
    job->wait();
  }

 private:
  void start_workers(int wanted) {
    try {
      for (; workers_ < wanted; ++workers_) {
        std::thread(&Pool::serve, this, workers_).detach();
      }
    } catch (const std::system_error&) {
      // The system has no more threads: the existing ones do the work, and the next call tries
      // again.
    }
  }

  void serve(int index) {
    uint64_t seen = 0;
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (index < helpers_) {
          job = job_;
        }
      }
      if (job) {
        job->work();
      }
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  uint64_t generation_ = 0;
  int workers_ = 0;
  int helpers_ = 0;
};

// Never destroyed: MLX's stream threads, and the pool's own, may outlive static destructors.
std::atomic<Pool*> instance{nullptr};

// A forked child has none of the threads, and mutexes in an arbitrary state, so it makes a new pool
// when it needs one. Nothing here may throw, which would end the child.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { instance.store(nullptr); });

// Uses no lock, because a fork might leave it locked in the child.
Pool& pool() {
  Pool* current = instance.load();
  if (!current) {
    auto fresh = std::make_unique<Pool>();
    if (instance.compare_exchange_strong(current, fresh.get())) {
      current = fresh.release();
    }
  }
  return *current;
}

} // namespace

void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  pool().run(count, task);
}

int num_threads() {
  int threads = chosen_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    const int fallback = default_threads();
    // Fails if another thread has just set the number; `threads` is then that number.
    if (chosen_threads.compare_exchange_strong(threads, fallback, std::memory_order_relaxed)) {
      return fallback;
    }
  }
  return threads;
}

void set_num_threads(int threads) {
  if (threads < 1 || threads > max_threads) {
    refuse("set_num_threads", std::to_string(threads));
  }
  chosen_threads.store(threads, std::memory_order_relaxed);
}

} // namespace mlx_opt::cpu
