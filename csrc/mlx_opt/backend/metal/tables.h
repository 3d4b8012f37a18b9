// The arguments of the update kernels, as plain data. Compiled by the host's compiler and by
// Metal's.
#pragma once

namespace mlx_opt {
namespace metal {

enum : unsigned {
  chunk = 4096,     // elements that a threadgroup updates
  threads = 256,    // of a threadgroup
  vector_width = 4, // elements that a thread loads at once
  tile = 32,        // width of the square tiles of a transposed gradient
};

enum : int { max_dims = 16 };

// Buffer slots of a kernel.
enum : int {
  uniforms_slot = 0, // the uniforms of all groups, which `prepare` writes
  result_slot = 0,   // the result of the norm's kernels
  arguments_slot = 1,
  operands_slot = 2, // the first operand
  slots = 31,
};

struct Tensor {
  unsigned long size;
  unsigned first_chunk; // of the dispatch's chunks
  unsigned short group;
  unsigned short vectors; // true if vectors can be loaded from all operands
  unsigned rounding_key;  // if the kernel rounds stochastically; so in the other structs
};

// The tensors of a dispatch.
template <int capacity>
struct Pack {
  Tensor tensors[capacity];
};

// A matrix whose gradient's columns are contiguous.
struct Matrix {
  unsigned long rows;
  unsigned columns;
  unsigned group;
  unsigned vectors;          // true if vectors can be loaded from parameter, slots and results
  unsigned gradient_vectors; // and down the gradient's columns
  unsigned rounding_key;
};

// Shape and strides of a tensor's operands. Dimensions from the outermost; strides in elements.
template <int operands>
struct Layout {
  int dims;
  long shape[max_dims];
  long strides[operands][max_dims];
};

// A tensor with operands of any layout; its results are row-contiguous.
template <int operands>
struct Strided {
  unsigned long size;
  unsigned group;
  unsigned rounding_key;
  Layout<operands> layout;
};

} // namespace metal
} // namespace mlx_opt
