// Runs a dispatch of a kernel on the CPU.
#pragma once

namespace msl {

/// Where the running thread is.
struct Position {
  unsigned group; // of the grid
  unsigned index; // in the threadgroup
  unsigned threads;
};
const Position& position();

/// Goes on when every thread of the threadgroup has come here.
void barrier();

using Kernel = void (*)(void* const* buffers);

/// Runs threadgroups [first, end) one after another. Returns how often a barrier was not reached by
/// all threads of a threadgroup.
int dispatch(Kernel kernel, void* const* buffers, unsigned first, unsigned end, unsigned threads);

} // namespace msl
