// A step that is ready to be queued.
#pragma once

#include <memory>
#include <vector>

#include "mlx/allocator.h"

namespace mlx_opt {

namespace mx = mlx::core;

using Buffers = std::vector<mx::allocator::Buffer>;

/// When a step begins.
enum class LaunchMode {
  whole, // once all of it is ready
  split, // with its first tensors, while the others are made ready: the GPU has nothing else to do.
         // Its results overwrite its inputs, which stay where they are until it is queued
  on_calling_thread, // on the calling thread, before `enqueue` returns; on the CPU only
};

/// A step in two moves, because placing the outputs takes the buffers away from the inputs: making
/// one notes where the inputs lie, `enqueue` is told where the outputs do.
class Prepared {
 public:
  virtual ~Prepared() = default;

  /// Queues or runs the step, writing to `outputs`. `keep_alive` stays alive until it is done.
  virtual void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) = 0;
};

} // namespace mlx_opt
