// The addresses of a step's operands and results.
#pragma once

#include <algorithm>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// The address of an operand. Recorded, because assigning the output buffers takes buffers out of
/// their arrays.
struct Place {
  void* buffer;
  size_t data_size;
  int64_t offset;

  explicit Place(const mx::array& x)
      : buffer(mx::allocator::Buffer(x.buffer()).ptr()),
        data_size(x.data_size()),
        offset(x.offset()) {}
  Place(mx::allocator::Buffer output, size_t size)
      : buffer(output.ptr()), data_size(size), offset(0) {}

  /// An array at this address that owns nothing, for MLX's encoder, which takes arrays.
  mx::array array() const {
    mx::array x(mx::Shape{}, mx::uint8, nullptr, {});
    Data unowned(mx::allocator::Buffer(buffer), [](mx::allocator::Buffer) {});
    set_data(x, std::move(unowned), data_size, {}, {true, true, true}, offset);
    return x;
  }
};

/// True if vectors can be loaded from the array; from all arrays.
inline bool vectors_fit(const mx::array& x) {
  return x.offset() % static_cast<int64_t>(vector_width * x.itemsize()) == 0;
}

inline bool vectors_fit(const mx::array* const* operands, int count) {
  return std::all_of(operands, operands + count, [](auto* x) { return vectors_fit(*x); });
}

} // namespace mlx_opt::metal
