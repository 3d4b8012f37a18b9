// What the kernels of a rule of two passes take, besides tables.h: the host's compiler and Metal's
// both read this.
#pragma once

#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt {
namespace metal {

// Buffer slots besides those of tables.h.
enum : int {
  sums_slot = operands_slot,  // where the first pass leaves its sums, and where they are read
  rates_slot = operands_slot, // where the second pass reads the rates
  new_rates_slot,             // where they are written
  pass_operands_slot = operands_slot + 1, // of the passes, the first of a tensor's operands
};

// A tensor's part of the sums that a dispatch of the first pass leaves, one a threadgroup.
struct Share {
  unsigned first;
  unsigned count;
  unsigned group; // of the tensor
};

} // namespace metal
} // namespace mlx_opt
