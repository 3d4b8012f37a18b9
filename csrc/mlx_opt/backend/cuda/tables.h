// What the kernels take as parameters, as plain data: the host's compiler and NVRTC both read this.
#pragma once

namespace mlx_opt {
namespace cuda {

// Elements that a block updates, and its threads. Measured: see docs/cuda.md.
constexpr int chunk = 4096;
constexpr int threads = 256;

// A transposed gradient is taken by square tiles of as many elements.
constexpr int tile = 64;
static_assert(tile * tile == chunk, "a tile is a chunk");

constexpr int max_fields = 3; // the parameter and its moments
constexpr int max_dims = 16;
constexpr int max_hyperparameters = 8;

struct Tensor {
  const void* in[max_fields + 1]; // parameter, moments, gradient
  void* out[max_fields];
  long long size;
  unsigned first_chunk; // of the launch's chunks
  int columns;          // of a matrix whose gradient is transposed
};

// The tensors of a launch. `frame` is what `prepare` has written: the rule's Hypers and Scalars,
// and the gradients' scale.
template <int capacity>
struct Table {
  const float* frame;
  long long count;
  Tensor tensors[capacity];
};

// Shape and strides of a tensor's operands. Dimensions from the outermost; strides in elements.
struct Layout {
  int dims;
  long long shape[max_dims];
  long long strides[max_fields + 1][max_dims];
};

// A tensor with operands of any layout; its results are row-contiguous.
struct Strided {
  const float* frame;
  Tensor tensor;
  Layout layout;
};

// Where the scalars of a step come from. `traced[k]`, where it is not null, stands for hyper k;
// `scale`, where it is not null, is the gradients'.
struct ScalarSources {
  const unsigned long long* step;
  const float* learning_rate;
  const float* traced[max_hyperparameters];
  const float* scale;
  float hypers[max_hyperparameters][3]; // value, complement, logarithm
  float* frame;
};

// Elements whose squares a block sums; the sums of all chunks, in order, and where their root goes.
constexpr int norm_chunk = 32768;
constexpr int norm_threads = 1024; // of the one block that sums the chunks

struct Sums {
  const double* of_chunks;
  long long count;
  float* norm;
};

} // namespace cuda
} // namespace mlx_opt
