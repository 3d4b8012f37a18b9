// Buffers with their owners, as the served releases of MLX have them. This is the one place that
// knows how those releases differ.
#pragma once

#include <utility>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/version.h"

namespace mlx_opt {

namespace mx = mlx::core;

/// A buffer that is freed, or given back, with the object.
using Data = mx::array::Data;

#if MLX_VERSION_NUMERIC >= 32004

inline Data new_data(size_t bytes) {
  return mx::allocator::malloc(bytes);
}

inline mx::allocator::Buffer buffer_of(const Data& data) {
  return data.buffer();
}

inline void set_data(mx::array& x, Data data) {
  x.set_data(std::move(data));
}

inline void set_data(
    mx::array& x,
    Data data,
    size_t size,
    mx::Strides strides,
    mx::array::Flags flags,
    int64_t offset = 0) {
  x.set_data(std::move(data), size, std::move(strides), flags, offset);
}

inline mx::array array_from(Data data, mx::Shape shape, mx::Dtype dtype) {
  return mx::array(std::move(data), std::move(shape), dtype);
}

#else

inline Data new_data(size_t bytes) {
  return Data(mx::allocator::malloc(bytes));
}

inline mx::allocator::Buffer buffer_of(const Data& data) {
  return data.buffer;
}

// A buffer and its deleter, which are no longer the object's.
inline std::pair<mx::allocator::Buffer, mx::Deleter> released(Data& data) {
  return {
      std::exchange(data.buffer, mx::allocator::Buffer(nullptr)),
      std::exchange(data.d, [](mx::allocator::Buffer) {})};
}

inline void set_data(mx::array& x, Data data) {
  auto [buffer, deleter] = released(data);
  x.set_data(buffer, std::move(deleter));
}

inline void set_data(
    mx::array& x,
    Data data,
    size_t size,
    mx::Strides strides,
    mx::array::Flags flags,
    int64_t offset = 0) {
  auto [buffer, deleter] = released(data);
  x.set_data(buffer, size, std::move(strides), flags, offset, std::move(deleter));
}

inline mx::array array_from(Data data, mx::Shape shape, mx::Dtype dtype) {
  auto [buffer, deleter] = released(data);
  return mx::array(buffer, std::move(shape), dtype, std::move(deleter));
}

#endif

} // namespace mlx_opt
