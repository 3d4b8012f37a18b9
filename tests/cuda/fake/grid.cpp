// Every thread of a block is a fiber. One runs until it waits or ends, then the next. Fibers are
// kept for the blocks that follow, and change by the compiler's own jumps: making a context, and
// changing to it by the library, asks the kernel each time. Not to be compiled under
// AddressSanitizer, which takes a jump for the end of all functions of a stack.
#include "grid.h"

#include <sanitizer/asan_interface.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

namespace grid {

Index block;
Index thread;
Index blocks;

namespace {

constexpr size_t stack_bytes = 64 * 1024;
constexpr unsigned warp = 32;

struct Fiber {
  enum State { ready, at_barrier, at_exchange, ended };

  std::unique_ptr<char[]> stack = std::make_unique<char[]>(stack_bytes);
  State state = ended;
  bool begun = false;
  void* place[5]; // where it continues
  // Alternating buffers, so that the next exchange does not overwrite values that are still to be
  // read.
  unsigned long long brought[2];
  int turn;

  void begin();
};

std::vector<Fiber> fibers;
Kernel kernel_of_block;
const void* parameter_of_block;
void* scheduler[5];
int found = 0;

// A separate function, so that the compiler sees a call after which execution may resume elsewhere.
[[gnu::noinline]] void jump(void** place) {
  __builtin_longjmp(place, 1);
}

[[gnu::noinline]] void leave(Fiber::State state) {
  Fiber& fiber = fibers[thread.x];
  fiber.state = state;
  if (__builtin_setjmp(fiber.place) == 0) {
    jump(scheduler);
  }
}

void run_threads() {
  for (;;) {
    kernel_of_block(parameter_of_block);
    leave(Fiber::ended);
  }
}

void Fiber::begin() {
  // Clears the remains of functions that never returned.
  __asan_unpoison_memory_region(stack.get(), stack_bytes);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack.get();
  context.uc_stack.ss_size = stack_bytes;
  makecontext(&context, run_threads, 0);
  begun = true;
  setcontext(&context);
}

[[gnu::noinline]] void go_on(Fiber& fiber) {
  if (__builtin_setjmp(scheduler) == 0) {
    if (!fiber.begun) {
      fiber.begin();
    }
    jump(fiber.place);
  }
}

// A fiber that was left waiting cannot be used again.
void make_ready(Fiber& fiber) {
  fiber.begun = fiber.begun && fiber.state == Fiber::ended;
  fiber.state = Fiber::ready;
  fiber.turn = 0;
}

// Forwards or backwards at random, so that an error that depends on the order is noticed.
template <typename Function>
void for_each_in_any_order(unsigned count, const Function& function) {
  static std::minstd_rand random;
  const bool backwards = random() >> 16 & 1;
  for (unsigned i = 0; i < count; ++i) {
    function(backwards ? count - 1 - i : i);
  }
}

// Resumes threads [begin, begin + count) if all of them wait for this.
bool release(unsigned begin, unsigned count, Fiber::State waiting) {
  const auto first = fibers.begin() + begin;
  const auto last = first + count;
  if (!std::all_of(first, last, [&](const Fiber& fiber) { return fiber.state == waiting; })) {
    return false;
  }
  std::for_each(first, last, [](Fiber& fiber) { fiber.state = Fiber::ready; });
  return true;
}

// Runs the warp until it waits for the others: warps are in step only at barriers.
void run_warp(unsigned begin, unsigned count) {
  do {
    for_each_in_any_order(count, [&](unsigned i) {
      thread.x = begin + i;
      if (fibers[thread.x].state == Fiber::ready) {
        go_on(fibers[thread.x]);
      }
    });
  } while (count == warp && release(begin, warp, Fiber::at_exchange));
}

void run_block(unsigned threads) {
  do {
    for_each_in_any_order((threads + warp - 1) / warp, [&](unsigned i) {
      run_warp(i * warp, std::min(warp, threads - i * warp));
    });
  } while (release(0, threads, Fiber::at_barrier));
}

void tell_who_waits(unsigned threads) {
  const auto count = [&](Fiber::State state) {
    return std::count_if(
        fibers.begin(), fibers.begin() + threads, [&](const Fiber& f) { return f.state == state; });
  };
  if (count(Fiber::at_barrier) > 0) {
    complain("a barrier is not reached by all threads of a block");
  }
  if (count(Fiber::at_exchange) > 0) {
    complain("a shuffle is not reached by all threads of a warp");
  }
}

} // namespace

void complain(const char* what) {
  std::fprintf(stderr, "%s: block %u, thread %u\n", what, block.x, thread.x);
  ++found;
}

int complaints() {
  return found;
}

void barrier() {
  leave(Fiber::at_barrier);
}

unsigned long long exchange(unsigned long long bits, unsigned lane) {
  Fiber& own = fibers[thread.x];
  const int turn = own.turn;
  own.brought[turn] = bits;
  own.turn = 1 - turn;
  leave(Fiber::at_exchange);
  return fibers[thread.x / warp * warp + lane % warp].brought[turn];
}

void run(Kernel kernel, const void* parameter, unsigned count, unsigned threads) {
  if (fibers.size() < threads) {
    fibers = std::vector<Fiber>(threads);
  }
  kernel_of_block = kernel;
  parameter_of_block = parameter;
  blocks.x = count;
  for_each_in_any_order(count, [&](unsigned i) {
    block.x = i;
    std::for_each(fibers.begin(), fibers.begin() + threads, make_ready);
    run_block(threads);
    tell_who_waits(threads);
  });
}

} // namespace grid
