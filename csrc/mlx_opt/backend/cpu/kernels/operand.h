// Loads and stores operands as floats: in place, converted, gathered or transposed. For one
// instruction set; included by the kernels' files only.
#pragma once

#include "mlx_opt/backend/cpu/kernels/codes.h"
#include "mlx_opt/backend/cpu/kernels/convert.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"

// For a large function with many callers: GCC would inline it, or copy it for a caller's constants.
#if defined(__clang__)
#define MLX_OPT_ONE_COPY __attribute__((noinline))
#else
#define MLX_OPT_ONE_COPY __attribute__((noinline, noclone))
#endif

MLX_OPT_RULES_BEGIN
namespace {

using cpu::Layout;
using cpu::Operand;
using cpu::Storage;
using cpu::Tensor;

// Number of elements that are staged at a time: the buffers of all operands fit into the first
// cache.
constexpr int64_t block = 256;

// Rows of a transposed operand that share its cache lines.
constexpr int64_t panel = cpu::transposed_rows;

// Gathers the elements [begin, begin + count) of a strided operand, in row-major order.
template <typename T>
void gather(const Operand& operand, int64_t begin, int64_t count, T* to) {
  const Layout& layout = *operand.layout;
  const int last = layout.ndim - 1;
  const int64_t row = layout.shape[last];
  const int64_t stride = layout.strides[last];
  while (count > 0) {
    const int64_t column = begin % row;
    int64_t rest = begin / row;
    int64_t offset = column * stride;
    for (int dim = last - 1; dim >= 0; --dim) {
      offset += rest % layout.shape[dim] * layout.strides[dim];
      rest /= layout.shape[dim];
    }
    const int64_t run = row - column < count ? row - column : count;
    const T* from = at<const T>(operand, offset);
    for (int64_t i = 0; i < run; ++i) {
      to[i] = from[i * stride];
    }
    to += run;
    begin += run;
    count -= run;
  }
}

// Prefetches the memory that is read soon after `at`. The processor itself prefetches only to the
// end of a page.
inline void prefetch(const void* at) {
  constexpr uintptr_t distance = 2048;
  const auto ahead = reinterpret_cast<uintptr_t>(at) + distance;
  __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
}

// Prefetches all cache lines of the elements [begin, begin + count).
inline void prefetch(const Operand& operand, int64_t begin, int64_t count) {
  constexpr int64_t line = 64;
  const int64_t size = operand.storage == Storage::float32 ? sizeof(float)
                       : is_coded(operand.storage)         ? sizeof(uint8_t)
                                                           : sizeof(uint16_t);
  const auto* from = at<const char>(operand, begin * size);
  for (int64_t i = 0; i < count * size; i += line) {
    prefetch(from + i);
  }
}

// Returns `count` elements as floats: in place if they are stored so, else converted into `staged`.
inline const float* load(const Operand& operand, int64_t begin, int64_t count, float* staged) {
  if (!operand.layout) {
    prefetch(operand, begin, count);
  }
  if (operand.storage == Storage::float32) {
    if (!operand.layout) {
      return at<const float>(operand, begin);
    }
    gather(operand, begin, count, staged);
    return staged;
  }
  if (is_coded(operand.storage)) {
    decode(operand, begin, count, staged);
    return staged;
  }
  uint16_t gathered[block];
  const uint16_t* halves = gathered;
  if (operand.layout) {
    gather(operand, begin, count, gathered);
  } else {
    halves = at<const uint16_t>(operand, begin);
  }
  if (operand.storage == Storage::float16) {
    widen<Float16>(halves, staged, count);
  } else if (operand.storage == Storage::bfloat16) {
    widen<BFloat16>(halves, staged, count);
  } else {
    widen<Bits16>(halves, staged, count);
  }
  return staged;
}

// Stores `staged` to the operand, unless it was written in place.
inline void store(const Operand& operand, int64_t begin, int64_t count, const float* staged) {
  if (operand.storage == Storage::float16) {
    narrow<Float16>(staged, at<uint16_t>(operand, begin), count);
  } else if (operand.storage == Storage::bfloat16) {
    narrow<BFloat16>(staged, at<uint16_t>(operand, begin), count);
  } else if (operand.storage == Storage::bits16) {
    narrow<Bits16>(staged, at<uint16_t>(operand, begin), count);
  } else if (is_coded(operand.storage)) {
    encode(operand, begin, count, staged);
  }
}

// Where to write results before `store`: in place if the operand holds floats, else `staged`.
inline float* place(const Operand& operand, int64_t begin, float* staged) {
  return operand.storage == Storage::float32 ? at<float>(operand, begin) : staged;
}

// Stores floats from any memory to the operand.
inline void put(const Operand& operand, int64_t begin, int64_t count, const float* values) {
  if (operand.storage == Storage::float32) {
    __builtin_memcpy(at<float>(operand, begin), values, count * sizeof(float));
  } else {
    store(operand, begin, count, values);
  }
}

// Copies the elements [begin, end) of `from` to the row-contiguous `to`, bit for bit if their
// storage is the same.
template <typename T>
void copy_bits(const Operand& from, const Operand& to, int64_t begin, int64_t end) {
  if (from.layout) {
    gather(from, begin, end - begin, at<T>(to, begin));
  } else {
    __builtin_memcpy(at<T>(to, begin), at<T>(from, begin), (end - begin) * sizeof(T));
  }
}

// Copies codes and their scales.
inline void copy_codes(const Operand& from, const Operand& to, int64_t begin, int64_t end) {
  copy_bits<uint8_t>(from, to, begin, end);
  const int64_t first = begin / cpu::coded_block;
  const int64_t count = (end - 1) / cpu::coded_block + 1 - first;
  __builtin_memcpy(to.scales + first, from.scales + first, count * sizeof(float));
}

inline void copy(const Operand& from, const Operand& to, int64_t begin, int64_t end) {
  if (is_coded(from.storage)) {
    return copy_codes(from, to, begin, end);
  }
  if (from.storage == to.storage) {
    return from.storage == Storage::float32 ? copy_bits<float>(from, to, begin, end)
                                            : copy_bits<uint16_t>(from, to, begin, end);
  }
  for (; begin < end; begin += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    float staged[block];
    const float* values = load(from, begin, count, staged);
    put(to, begin, count, values);
  }
}

// Transposes columns [left, right) of the panel of rows at `top` to rows. Walks down a few columns
// at a time, whose cache lines hold the panel's rows.
template <typename Format>
void transpose(const Operand& operand, int64_t top, int64_t left, int64_t right, float* to) {
  using Stored = typename Format::Stored;
  constexpr int64_t tile = 16;
  const int64_t rows = operand.layout->shape[0];
  const int64_t height = rows - top < panel ? rows - top : panel;
  const int64_t stride = operand.layout->strides[1];
  const Stored* from = at<const Stored>(operand, top);
  for (int64_t first = left; first < right; first += tile) {
    const int64_t end = first + tile < right ? first + tile : right;
    for (int64_t column = first; column < end; ++column) {
      __builtin_prefetch(from + (column + tile) * stride);
      for (int64_t row = 0; row < height; ++row) {
        to[row * block + column - left] = Format::widen(from[column * stride + row]);
      }
    }
  }
}

inline void load_panel(
    const Operand& operand, int64_t top, int64_t left, int64_t right, float* to) {
  switch (operand.storage) {
    case Storage::float32:
      return transpose<Float32>(operand, top, left, right, to);
    case Storage::float16:
      return transpose<Float16>(operand, top, left, right, to);
    case Storage::bfloat16:
      return transpose<BFloat16>(operand, top, left, right, to);
    case Storage::bits16:
      return transpose<Bits16>(operand, top, left, right, to);
    case Storage::int8:
    case Storage::uint8:
      return; // no gradient has codes
  }
}

// The scaled and clipped values of at most `block` elements of a gradient, which are put into `to`.
MLX_OPT_FN const float* clipped(Scale scale, const float* gradient, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = scaled(scale, gradient[i]);
  }
  return to;
}

} // namespace
MLX_OPT_RULES_END
