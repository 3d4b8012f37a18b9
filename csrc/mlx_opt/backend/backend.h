// How a step reaches a GPU. Under Linux without libmlx_opt naming a symbol of one: the CUDA backend
// is a library of its own, loaded when the running MLX has such a GPU. Under macOS, where every MLX
// has Metal, the backend is part of libmlx_opt.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::gpu {

namespace mx = mlx::core;

class Backend {
 public:
  virtual ~Backend() = default;

  /// Finds the kernels of a step over `inputs`, as StepSpec has them, and notes where they lie.
  /// `dtypes`: of the outputs. Throws std::runtime_error if there are no kernels to be had.
  virtual std::unique_ptr<Prepared> prepare(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      LaunchMode mode) const = 0;

  /// A buffer in the device's own memory.
  virtual mx::array::Data allocate(size_t bytes, mx::Stream stream) const = 0;

  /// Waits until the GPU has no more than one step of the stream before it, so that a loop that
  /// never waits does not fill the memory.
  virtual void wait_for_turn(mx::Stream stream) const = 0;

  /// True if asking for an array's event is slow. Then one result is left lazy for a caller who
  /// evaluates many arrays, because MLX waits for that one alone.
  virtual bool has_costly_events() const {
    return false;
  }

  /// Queues: `output`, a float32 without a buffer yet, = the square root of the sum of the squares
  /// of all elements of `arrays`.
  virtual void norm(
      const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream) const = 0;

  /// Queues: `scale`, a float32 without a buffer yet, = what gradients of norm `inputs[0]` are
  /// multiplied with; see rules/clip.h. `inputs[1]`, if it is there, stands for `max_norm`.
  virtual void clip(
      const std::vector<mx::array>& inputs,
      float max_norm,
      bool skip_nonfinite,
      mx::array& scale,
      mx::Stream stream) const = 0;

  /// What keeps kernels from being compiled and loaded here; empty if nothing does.
  virtual std::string problem() const = 0;
};

/// What the backend's library exports under `entry_point`.
using EntryPoint = const Backend* (*)();
inline constexpr const char* entry_point = "mlx_opt_gpu_backend";

} // namespace mlx_opt::gpu
