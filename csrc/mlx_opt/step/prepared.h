// A step that is ready to be queued.
#pragma once

#include <memory>
#include <vector>

#include "mlx/allocator.h"

namespace mlx_opt {

namespace mx = mlx::core;

using Buffers = std::vector<mx::allocator::Buffer>;

/// When and where a prepared step runs.
enum class LaunchMode {
  whole, // queued once all of it is prepared
  split, // the first tensors are launched while the others are prepared, because the GPU is idle.
         // The step is in place, and its input arrays stay valid until it is queued
  on_calling_thread, // run before `enqueue` returns; CPU only
};

/// Two phases: creating a Prepared records the input addresses, `enqueue` takes the output
/// addresses. Assigning the output buffers in between may take buffers away from the inputs.
class Prepared {
 public:
  virtual ~Prepared() = default;

  /// Queues or runs the step, which writes to `outputs`. `keep_alive` is released when it is done.
  virtual void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) = 0;
};

} // namespace mlx_opt
