// The counters and findings of the fake of Metal.
#pragma once

#include <string>
#include <vector>

namespace fake {

struct Dispatch {
  std::string kernel;
  unsigned long groups;
  unsigned long threads;
  bool behind_barrier;
};

struct Log {
  std::vector<Dispatch> dispatches;
  int barriers = 0;
  std::vector<std::string> errors;

  /// Dispatches that followed one with conflicting buffers without a barrier.
  std::vector<std::string> hazards;
};

Log& log();

/// Ends the encoder, and resets it and the log.
void begin();

} // namespace fake
