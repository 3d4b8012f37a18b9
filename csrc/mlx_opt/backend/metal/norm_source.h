// The programs of the kernels of the norm.
#pragma once

#include <cstdint>
#include <string>

#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::metal {

/// squares: of tensors all of whose elements lie together; strided_squares: of one of any layout,
/// of fewer than 2^32 elements; strided_squares_long: of any number. Then the norm of their sums,
/// and what gradients of that norm are multiplied with.
enum class NormKind : uint8_t { squares, strided_squares, strided_squares_long, norm, clip };

struct NormKernel {
  NormKind kind;
  Storage storage = Storage::float32; // of the tensors
  int capacity = 1;                   // tensors of a dispatch

  bool operator==(const NormKernel&) const = default;
};

/// The most tensors that a dispatch has slots for.
constexpr int max_squares_per_pack = slots - operands_slot;

/// As of the other kernels: what the program is kept by, and all of it.
std::string name(const NormKernel& kernel);
std::string source(const NormKernel& kernel);

} // namespace mlx_opt::metal
