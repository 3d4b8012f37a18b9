// Runs a grid of a kernel on the CPU. Kernels that are compiled with kernel.h call this.
#pragma once

namespace grid {

/// What went wrong in a grid: counted here, written to stderr.
void complain(const char* what);
int complaints();

/// Where the running thread is.
struct Index {
  unsigned x;
};
extern Index block;
extern Index thread;
extern Index blocks; // how many there are

/// Goes on when every thread of the block has come here.
void barrier();

/// Goes on when every thread of the warp has come here; what thread `lane` of it brought.
unsigned long long exchange(unsigned long long bits, unsigned lane);

using Kernel = void (*)(const void* parameter);

/// Runs blocks one after another, in any order.
void run(Kernel kernel, const void* parameter, unsigned blocks, unsigned threads);

} // namespace grid
