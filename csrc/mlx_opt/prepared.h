// A step that is ready to be queued.
#pragma once

#include <memory>
#include <vector>

#include "mlx/allocator.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// A step in two moves, because placing the outputs takes the buffers away from the inputs: making
/// one notes where the inputs lie, `enqueue` is told where the outputs do.
class Prepared {
 public:
  virtual ~Prepared() = default;

  /// Queues the step, writing to `outputs`. `keep` stays alive until it is done.
  virtual void enqueue(
      const std::vector<mx::allocator::Buffer>& outputs, std::shared_ptr<void> keep) = 0;
};

} // namespace mlx_opt
