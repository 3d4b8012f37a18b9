// The arguments of the kernels of a rule of two passes, besides tables.h. Compiled by the host's
// compiler and by Metal's.
#pragma once

#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt {
namespace metal {

// Buffer slots besides those of tables.h.
enum : int {
  sums_slot = operands_slot,              // the sums of the first pass
  rates_slot = operands_slot,             // the rates that the second pass reads
  new_rates_slot,                         // the rates that are written
  pass_operands_slot = operands_slot + 1, // the first operand of the passes
};

// A tensor's part of the sums that a dispatch of the first pass writes, one for each threadgroup.
struct Share {
  unsigned first;
  unsigned count;
  unsigned group; // of the tensor
};

} // namespace metal
} // namespace mlx_opt
