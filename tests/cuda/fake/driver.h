// The fake of CUDA's driver, as the fake of MLX's device sees it.
#pragma once

#include <cuda.h>

#include <deque>
#include <functional>
#include <string>
#include <vector>

namespace fake {

/// A launch of a kernel, and the launches of its graph that it depends on.
struct Node {
  CUfunction function;
  unsigned blocks;
  unsigned threads;
  std::vector<char> parameter;
  std::vector<size_t> behind;
};

using Graph = std::vector<Node>;

Node node(CUfunction function, unsigned blocks, unsigned threads, const void* parameter);

/// The queued work, in order. Nothing runs before something waits.
struct Queue {
  struct Work {
    Graph graph;
    std::vector<std::function<void()>> handlers;
  };
  std::deque<Work> work;
  size_t done = 0;

  /// Runs all work up to number `count`, counted from the queue's first.
  void run_to(size_t count);
  void run_all();
};

void complain(std::string what);

} // namespace fake
