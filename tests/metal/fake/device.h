// What the fake of Metal has counted and found.
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

  /// Dispatches that came without a barrier since one whose buffers conflict with theirs.
  std::vector<std::string> hazards;
};

Log& log();

/// Ends the encoder and forgets what it and the log know.
void begin();

} // namespace fake
