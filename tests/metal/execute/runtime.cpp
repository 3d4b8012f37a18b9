// Every thread of a threadgroup is a fiber. One runs until it waits or ends, then the next.
#include "runtime.h"

#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <vector>

namespace msl {
namespace {

constexpr size_t stack_bytes = 128 * 1024;

struct Fiber {
  enum State { ready, waiting, ended };

  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(stack_bytes);
  State state;
  Position position;
};

struct Work {
  Kernel kernel;
  void* const* buffers;
};

thread_local Fiber* running;
thread_local ucontext_t scheduler;
thread_local const Work* work;

void leave(Fiber::State state) {
  running->state = state;
  swapcontext(&running->context, &scheduler);
}

void run_thread() {
  work->kernel(work->buffers);
  leave(Fiber::ended);
}

void start(Fiber& fiber, Position position) {
  fiber.state = Fiber::ready;
  fiber.position = position;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber.context, run_thread, 0);
}

// Runs every fiber to its next barrier or its end; returns how many wait.
size_t run_all(std::vector<Fiber>& fibers) {
  size_t waiting = 0;
  for (Fiber& fiber : fibers) {
    if (fiber.state != Fiber::ended) {
      running = &fiber;
      swapcontext(&scheduler, &fiber.context);
      waiting += fiber.state == Fiber::waiting;
    }
  }
  return waiting;
}

} // namespace

const Position& position() {
  return running->position;
}

void barrier() {
  leave(Fiber::waiting);
}

int dispatch(Kernel kernel, void* const* buffers, unsigned first, unsigned end, unsigned threads) {
  static thread_local std::vector<Fiber> fibers;
  fibers.resize(threads);
  const Work own{kernel, buffers};
  work = &own;
  int errors = 0;
  for (unsigned group = first; group < end; ++group) {
    for (unsigned index = 0; index < threads; ++index) {
      start(fibers[index], {group, index, threads});
    }
    while (const size_t waiting = run_all(fibers)) {
      if (waiting != threads) {
        std::fprintf(
            stderr,
            "a barrier is reached by %zu of %u threads of group %u\n",
            waiting,
            threads,
            group);
        ++errors;
      }
    }
  }
  return errors;
}

} // namespace msl
