// The interface of a GPU backend. Under Linux libmlx_opt refers to no symbol of one: the CUDA
// backend is a library of its own, loaded if the running MLX has such a GPU. Under macOS, where
// every MLX has Metal, the backend is part of libmlx_opt.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::gpu {

namespace mx = mlx::core;

class Backend {
 public:
  virtual ~Backend() = default;

  /// Finds the kernels of a step over `inputs`, which are those of StepSpec, and records their
  /// addresses. `dtypes`: of the outputs. Throws std::runtime_error if there are no kernels for it.
  virtual std::unique_ptr<Prepared> prepare(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      LaunchMode mode) const = 0;

  /// Allocates a buffer in the device's own memory.
  virtual Data allocate(size_t bytes, mx::Stream stream) const = 0;

  /// Waits until the GPU has at most one step of the stream left to run, so that a loop that never
  /// waits does not fill the memory.
  virtual void wait_for_turn(mx::Stream stream) const = 0;

  /// True if querying an array's event is slow. Then one result is left lazy for a caller who
  /// evaluates many arrays, because MLX waits only for that one.
  virtual bool has_costly_events() const {
    return false;
  }

  /// Queues the computation of the global norm of `arrays` into `output`, a float32 without a
  /// buffer yet.
  virtual void norm(
      const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream) const = 0;

  /// Queues the computation of the gradient scale into `scale`, a float32 without a buffer yet; see
  /// rules/clip.h. `inputs`: the norm, and `max_norm` if it is traced; then the constant is
  /// ignored.
  virtual void clip(
      const std::vector<mx::array>& inputs,
      float max_norm,
      bool skip_nonfinite,
      mx::array& scale,
      mx::Stream stream) const = 0;

  /// The reason why kernels cannot be compiled and loaded here; empty if they can.
  virtual std::string problem() const = 0;
};

/// The type of the function that the backend's library exports as `entry_point`.
using EntryPoint = const Backend* (*)();
inline constexpr const char* entry_point = "mlx_opt_gpu_backend";

} // namespace mlx_opt::gpu
