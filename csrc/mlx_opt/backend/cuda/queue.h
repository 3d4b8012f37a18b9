// The launches of a step over tensors, in order.
#pragma once

#include <memory>

#include "mlx_opt/backend/cuda/shares.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt::cuda {

class StepQueue {
 public:
  /// Allocates the uniforms of a step's groups.
  StepQueue(const StepSpec& spec, mx::Stream stream);

  mx::cu::CommandEncoder& encoder() {
    return encoder_;
  }

  /// Launches the kernel of the scalars when the stream's last but one step is done.
  void begin(const StepSpec& spec, const ArrayRefs& inputs);

  /// Makes the next launch wait for the operands. Outputs need not be declared: the step is
  /// committed, so later work of the stream runs after it.
  void read_operands(const StepSpec& spec, const ArrayRefs& inputs);

  /// Launches the kernel of a share over its records [begin, end), at most `share.capacity()`.
  void launch(Share& share, size_t begin, size_t end);

  /// Launches the kernels of all shares.
  void launch(Shares& shares);

  /// Launches any kernel over a table of records [begin, end).
  void launch(
      CUfunction function,
      const Records& records,
      size_t begin,
      size_t end,
      unsigned blocks,
      int threads);

  /// Commits the queued launches. `keep_alive` is released when the step is done.
  void end(std::shared_ptr<void> keep_alive);

 private:
  void launch_next(CUfunction function, unsigned blocks, int threads, void* parameter);

  mx::Stream stream_;
  mx::cu::CommandEncoder& encoder_;
  mx::array group_uniforms_;
};

} // namespace mlx_opt::cuda
