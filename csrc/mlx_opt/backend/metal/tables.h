// What the kernels take as arguments, as plain data: the host's compiler and Metal's both read
// this.
#pragma once

namespace mlx_opt {
namespace metal {

enum : unsigned {
  chunk = 4096,       // elements that a threadgroup updates
  threads = 256,      // of a threadgroup
  lanes = 4,          // elements that a thread loads at once
  tile = 32,          // a transposed gradient is taken by square tiles of as many elements
  norm_chunk = 16384, // elements whose squares a threadgroup sums
};

enum : int {
  max_fields = 3, // the parameter and its moments
  max_dims = 16,
  max_hyperparameters = 9,
};

// Adafactor's matrices are cut into tiles, as their gradient lies; what is not factored into
// chunks.
enum : unsigned {
  factor_lines = 64, // of a tile
  factor_columns = 256,
  factor_across = 32, // threads side by side in a line
  factor_own = factor_columns / factor_across,
  factor_pitch = factor_across + 1, // threads that go down a column then use different banks
  factor_staged = factor_lines * factor_pitch, // floats of a threadgroup
};

// Buffer slots of a kernel.
enum : int {
  frame_slot = 0,  // what `prepare` has written: Hypers, Scalars and the gradients' scale
  result_slot = 0, // the same of the kernels of the norm: what they write
  arguments_slot = 1,
  operands_slot = 2, // the first of them
  step_slot = 2,     // these four: of `prepare`
  learning_rate_slot = 3,
  scale_slot = 4,
  traced_slot = 5,  // the first of them
  scratch_slot = 2, // of Adafactor's passes; behind it their operands
  slots = 31,
};

struct Tensor {
  unsigned long size;
  unsigned first_chunk; // of the dispatch's chunks
  unsigned vectors;     // whether all operands lie so that vectors can be loaded
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
  unsigned vectors;          // of the parameter, the moments and the results
  unsigned gradient_vectors; // of the gradient, down its columns
};

// Shape and strides of a tensor's operands. Dimensions from the outermost; strides in elements.
struct Layout {
  int dims;
  long shape[max_dims];
  long strides[max_fields + 1][max_dims];
};

// A tensor with operands of any layout; its results are row-contiguous.
struct Strided {
  unsigned long size;
  Layout layout;
};

// Where a tensor's sums, means and rates are in its scratch, in floats.
struct FactorScratch {
  unsigned long parameter_squares; // a sum for each part of the tensor: a tile, or a chunk
  unsigned long update_squares;
  unsigned long rates;
  unsigned long means;       // of the rows' means, of each matrix
  unsigned long totals;      // of the rows' new means: a sum for each threadgroup that makes them
  unsigned long line_sums;   // of squares, as the gradient lies: [across][lines of all matrices]
  unsigned long column_sums; // [tiles down, of all matrices][columns]
  unsigned long row_means;   // new, of all matrices
  unsigned long column_factors; // of all matrices
};

// Rows and columns are of each of its matrices. `turned`: the gradient's matrices lie transposed,
// and its lines are the columns. `splits`: how many threads add up the sums of a row, of a column.
struct FactorTensor {
  unsigned long size;
  FactorScratch scratch;
  unsigned rows, columns, matrices;
  unsigned parts;
  unsigned row_split, column_split;
  unsigned turned;
  unsigned vectors; // whether vectors can be loaded along the gradient's lines, from all operands
  unsigned row_vectors; // along the rows of all operands but a turned gradient
  unsigned skips;       // whether the step is not taken where the gradients' scale is not finite
};

// What a pass takes: of operands that lie as the results do, or the gradient turned.
struct FactorArguments {
  FactorTensor tensor;
};

// Of operands of any layout. `elements`: of the gradient, the parameter, the means of the squares
// of elements and the first moment, where a tensor has them.
struct FactorStrided {
  FactorTensor tensor;
  Layout elements, row_means, column_means;
};

// A sum of squares, (high + low) * 4^exponent: where there is no double, high is the float next
// to it and low what that lacks, and an exponent of its own keeps squares from overflow and
// underflow.
struct Sum {
  float high;
  float low;
  int exponent;
};

// What clipping goes by that the host knows.
struct Clip {
  float most;      // the greatest norm,
  unsigned traced; // unless that is read from its buffer
  unsigned skips;  // whether steps whose norm is not finite are left out
};

// The scalars of a step that the host knows.
struct Constants {
  float hypers[max_hyperparameters][3]; // value, complement, logarithm
  unsigned traced;                      // bit k: hyper k is read from its buffer instead
  unsigned scaled;                      // whether the gradients' scale is read from its buffer
};

} // namespace metal
} // namespace mlx_opt
