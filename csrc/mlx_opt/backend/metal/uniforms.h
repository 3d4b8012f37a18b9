// The scalars of a step on the GPU: one set of uniforms for each group of tensors.
#pragma once

#include <vector>

#include "mlx/backend/metal/device.h"
#include "mlx_opt/backend/gpu/uniforms_shape.h"
#include "mlx_opt/backend/metal/scalar_tables.h"
#include "mlx_opt/step/spec.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

using gpu::UniformsShape;

/// The uniforms of a step. They are computed when it runs.
class GroupUniforms {
 public:
  /// `scalars`: the inputs after the operands, as StepSpec has them. Finds the kernels. Throws
  /// std::runtime_error if a group has more scalars than a kernel has room for.
  GroupUniforms(
      const UniformsShape& shape,
      const StepSpec& spec,
      const mx::array* const* scalars,
      mx::metal::Device& device);

  /// Encodes the kernels that fill them. Nothing else writes them, so MLX inserts one barrier
  /// before they are read.
  mx::array encode(mx::metal::CommandEncoder& encoder) const;

 private:
  // Computes the uniforms of consecutive groups.
  struct Dispatch {
    size_t first_group = 0;
    size_t groups = 0;
    std::vector<Source> sources{};    // of each group, in the kernel's order
    std::vector<mx::array> scalars{}; // that are read when the step runs
    int capacity = 0;                 // of the kernel
    MTL::ComputePipelineState* pipeline = nullptr;

    bool has_room(size_t more_sources, size_t more_scalars) const;
    void add(const mx::array* scalar, Source otherwise);
  };

  void add_group(const GroupSources& group, const GroupInputs& inputs, const ScalarInputs& all);

  UniformsShape shape_;
  size_t groups_ = 0;
  std::vector<Dispatch> dispatches_;
};

} // namespace mlx_opt::metal
