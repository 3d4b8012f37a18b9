// Builds the source text of the norm's kernels.
#pragma once

#include <cstdint>
#include <string>

#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::metal {

/// squares: sums the squares of tensors without gaps. strided_squares: of one of any layout with
/// fewer than 2^32 elements; strided_squares_long: with any number. norm: the norm from the sums.
/// clip: the gradient scale from the norm.
enum class NormKind : uint8_t { squares, strided_squares, strided_squares_long, norm, clip };

struct NormKernel {
  NormKind kind;
  Storage storage = Storage::float32; // of the tensors
  int capacity = 1;                   // tensors of a dispatch

  bool operator==(const NormKernel&) const = default;
};

/// The maximum number of tensors for which a dispatch has slots.
constexpr int max_squares_per_pack = slots - operands_slot;

/// As for the other kernels: a name that identifies the program, and its text.
std::string name(const NormKernel& kernel);
std::string source(const NormKernel& kernel);

} // namespace mlx_opt::metal
