// What the kernels of an update take as arguments, as plain data: the host's compiler and Metal's
// both read this.
#pragma once

namespace mlx_opt {
namespace metal {

enum : unsigned {
  chunk = 4096,     // elements that a threadgroup updates
  threads = 256,    // of a threadgroup
  vector_width = 4, // elements that a thread loads at once
  tile = 32,        // a transposed gradient is taken by square tiles of as many elements
};

enum : int { max_dims = 16 };

// Buffer slots of a kernel.
enum : int {
  uniforms_slot = 0, // what `prepare` has written: of each group Hypers, Scalars and the scale
  result_slot = 0,   // the same of the kernels of the norm: what they write
  arguments_slot = 1,
  operands_slot = 2, // the first of them
  slots = 31,
};

struct Tensor {
  unsigned long size;
  unsigned first_chunk; // of the dispatch's chunks
  unsigned short group;
  unsigned short vectors; // whether all operands lie so that vectors can be loaded
};

// Several tensors of a dispatch.
template <int capacity>
struct Pack {
  Tensor tensors[capacity];
};

// A matrix whose gradient's columns are contiguous.
struct Matrix {
  unsigned long rows;
  unsigned columns;
  unsigned group;
  unsigned vectors;          // of the parameter, the state and the results
  unsigned gradient_vectors; // of the gradient, down its columns
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
  Layout<operands> layout;
};

} // namespace metal
} // namespace mlx_opt
