// A tensor of a step of an elementwise rule, or of one of two passes, in the form that its kernels
// take.
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
  size_t first_output;   // index of the parameter among the outputs
  size_t size;
  unsigned short group;
  unsigned rounding_key;         // if the kernel rounds stochastically
  bool vectors;                  // true if vectors can be loaded from all operands
  std::vector<char> arguments{}; // Matrix or Strided, if the walk needs one
  uint64_t threadgroups = 0;
  std::optional<Strided<1>> parameter{}; // its layout, if it is not contiguous

  /// `kernel`: names the rule; its other members are set from the arrays. `dtypes`: of the outputs.
  /// Assumes that the results overwrite all that they may.
  Leaf(
      UpdateKernel kernel,
      const mx::array* const* arrays,
      const mx::Dtype* dtypes,
      size_t first_output,
      unsigned short group,
      unsigned rounding_key);

  /// Sets in the kernel which inputs the results overwrite. Returns true if the kernel was right
  /// already.
  bool place(const Buffers& outputs);

  /// True if the operands are walked over by their strides.
  bool is_strided() const {
    return kernel.walk == Walk::strided || kernel.walk == Walk::strided_long;
  }

  /// The arguments of a strided walk over the parameter, the new slots and the gradient.
  std::vector<char> arguments_with_new_slots() const;

  /// The addresses of the tensor's results.
  std::vector<Place> out(const Buffers& outputs) const;

 private:
  void set_walk(const mx::array* const* arrays);
};

/// Places all leaves. Returns true if all kernels were right already.
bool place_all(std::vector<Leaf>& leaves, const Buffers& outputs);

/// The number of threadgroups for a contiguous tensor of `size` elements.
uint64_t chunks_of(uint64_t size);

} // namespace mlx_opt::metal
