// A tensor of a step of an elementwise rule, or of one of two passes, as its kernels take it.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx_opt/backend/metal/kernel_source.h"
#include "mlx_opt/backend/metal/place.h"
#include "mlx_opt/step/prepared.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

struct Leaf {
  UpdateKernel kernel;
  std::vector<Place> in; // parameter, state, gradient
  size_t first_output;   // the parameter's among the outputs
  size_t size;
  unsigned short group;
  bool vectors;                  // true if vectors can be loaded from all operands
  std::vector<char> arguments{}; // Matrix or Strided, where the walk takes one
  uint64_t threadgroups = 0;
  std::optional<Strided<1>> parameter{}; // its layout, where that is not contiguous

  /// `kernel`: of the rule; the rest of it is set from the arrays. `dtypes`: of the outputs. The
  /// results are taken to overwrite what they may.
  Leaf(
      UpdateKernel kernel,
      const mx::array* const* arrays,
      const mx::Dtype* dtypes,
      size_t first_output,
      unsigned short group);

  /// Sets in the kernel which inputs the results overwrite. Returns true if that was already so.
  bool place(const Buffers& outputs);

  /// Where the tensor's results lie.
  std::vector<Place> out(const Buffers& outputs) const;

 private:
  void set_walk(const mx::array* const* arrays);
};

/// Threadgroups that a contiguous tensor of so many elements takes.
uint64_t chunks_of(uint64_t size);

} // namespace mlx_opt::metal
