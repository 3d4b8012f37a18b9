// Builds the source text of Adafactor's kernels. Depends on neither Metal nor MLX, so that it can
// be tested without them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mlx_opt/types/storage.h"

namespace mlx_opt::metal {

/// The passes of a tensor in the order of their dispatches. Factored: squares, means,
/// update_squares, rates and update or transposed_update. Not factored: element_squares, rates and
/// element_update, or for one chunk only element_step.
enum class AdafactorKind : uint8_t {
  squares,
  means,
  update_squares,
  rates,
  update,
  transposed_update,
  element_squares,
  element_update,
  element_step,
};

/// Identifies a kernel: a pass over a tensor of these storages. `in`: those that the pass reads, in
/// this order: the gradient, the parameter, the running means of elements and the first moment; or
/// the means of rows and of columns. `out`: those of these that it writes.
struct AdafactorKernel {
  AdafactorKind kind;
  std::vector<Storage> in;
  std::vector<Storage> out;
  bool strided = false; // operands of any layout

  bool operator==(const AdafactorKernel&) const = default;
};

/// As for UpdateKernel.
std::string name(const AdafactorKernel& kernel);
std::string source(const AdafactorKernel& kernel);

} // namespace mlx_opt::metal
