// What the kernels of an update take as parameters, as plain data: the host's compiler and NVRTC
// both read this.
#pragma once

namespace mlx_opt {
namespace cuda {

// Elements that a block updates, and its threads. Measured: see docs/cuda-experiments.md.
constexpr int chunk = 4096;
constexpr int threads = 256;

// Of the block that makes a tensor's rates.
constexpr int rates_threads = 1024;

// A transposed gradient is taken by square tiles of as many elements.
constexpr int tile = 64;
static_assert(tile * tile == chunk, "a tile is a chunk");

constexpr int max_dims = 16;

struct Extent {
  unsigned long long size : 48; // in elements
  unsigned long long group : 16;
  unsigned first_chunk; // of the launch's chunks
  int columns;          // of a matrix whose gradient is transposed
};
static_assert(sizeof(Extent) == 16, "two words");

// A tensor, as wide as its program needs.
template <int inputs, int outputs>
struct Tensor : Extent {
  const void* in[inputs]; // as the kernel's pass has them
  void* out[outputs];
};

// The tensors of a launch. `group_uniforms`: what the kernel of the scalars has written for each
// group.
template <int inputs, int outputs, int capacity>
struct Table {
  const float* group_uniforms;
  long long count;
  Tensor<inputs, outputs> tensors[capacity];
};

// Shape and strides of a tensor's operands. Dimensions from the outermost; strides in elements.
template <int operands>
struct Layout {
  int dims;
  long long shape[max_dims];
  long long strides[operands][max_dims];
};

// A tensor with operands of any layout; its results are row-contiguous.
template <int inputs, int outputs>
struct Strided {
  const float* group_uniforms;
  Tensor<inputs, outputs> tensor;
  Layout<inputs> layout;
};

} // namespace cuda
} // namespace mlx_opt
