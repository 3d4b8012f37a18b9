// Runs a grid of a kernel on the CPU. Kernels that are compiled with kernel.h call this.
#pragma once

namespace grid {

/// Counts an error in a grid and writes it to stderr; the number of errors so far.
void complain(const char* what);
int complaints();

/// The indices of the running thread.
struct Index {
  unsigned x;
};
extern Index block;
extern Index thread;
extern Index blocks; // how many there are

/// Returns when every thread of the block has come here.
void barrier();

/// Returns when every thread of the warp has come here; returns the value of thread `lane`.
unsigned long long exchange(unsigned long long bits, unsigned lane);

using Kernel = void (*)(const void* parameter);

/// Runs blocks one after another, in any order.
void run(Kernel kernel, const void* parameter, unsigned blocks, unsigned threads);

} // namespace grid
