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
constexpr int max_hyperparameters = 9;

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

// `max_norm`: of the array, or where that is null the number.
struct Clip {
  const float* norm;
  const float* max_norm;
  float most;
  int skips;
  float* scale;
};

// Adafactor. Its matrices are cut into tiles of as many rows, and of as many columns as a warp
// takes at once; what is not factored lies in rows of that width. As many threads make the means of
// rows and columns, and the rates of a tensor.
constexpr int factor_rows = 128;
constexpr int factor_threads = 1024;

// Where a tensor's sums, means and rates are between the passes.
struct FactorScratch {
  double* squares;       // of the parameter, then of the update: a sum for each tile
  double* totals;        // of the rows' new means: a sum for each block that makes them
  float* line_sums;      // of squares, as the gradient lies: [tiles across][lines of all matrices]
  float* column_sums;    // [tiles down, of all matrices][columns]
  float* row_means;      // new, of all matrices
  float* column_factors; // of all matrices
  float* rates;
};

// Rows and columns are of each of its matrices. `turned`: the gradient's matrices lie transposed,
// and its lines are the columns. `splits`: how many threads add up the sums of a row, of a column.
struct FactorTensor {
  const void* in[5]; // parameter; means of rows or of elements; of columns; first moment; gradient
  void* out[4];
  FactorScratch scratch;
  long long size, rows, columns, matrices;
  unsigned first_tile, tiles;
  unsigned first_means;
  short row_split, column_split;
  short factored, turned;
};

// `skips`: whether the step is not taken where the gradients' scale is not finite.
template <int capacity>
struct FactorTable {
  const float* frame;
  int count;
  int skips;
  FactorTensor tensors[capacity];
};

// A tensor with operands of any layout. That of the elements has the strides of the parameter, the
// running means, the first moment and the gradient.
struct FactorStrided {
  const float* frame;
  int count;
  int skips;
  FactorTensor tensors[1];
  Layout elements, row_means, column_means;
};

} // namespace cuda
} // namespace mlx_opt
