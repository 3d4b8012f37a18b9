// The parameters of the update kernels, as plain data. Compiled by the host's compiler and by
// NVRTC.
#pragma once

namespace mlx_opt {
namespace cuda {

// The number of elements that a block updates, and of its threads. Measured: see
// docs/cuda-experiments.md.
constexpr int chunk = 4096;
constexpr int threads = 256;

// Threads of the block that computes a tensor's rates.
constexpr int rates_threads = 1024;

// A transposed gradient is processed in square tiles of this width.
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

// A tensor with the number of addresses that its program needs.
template <int inputs, int outputs>
struct Tensor : Extent {
  const void* in[inputs]; // in the order of the kernel's pass
  void* out[outputs];
};

// The tensors of a launch. `group_uniforms`: the results of the kernel of the scalars.
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
