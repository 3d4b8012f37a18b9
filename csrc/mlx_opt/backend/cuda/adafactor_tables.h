// What Adafactor's kernels take, besides tables.h: the host's compiler and NVRTC both read this.
#pragma once
#include "tables.h"

namespace mlx_opt {
namespace cuda {

// Its matrices are cut into tiles of as many rows, and of as many columns as a warp takes at once;
// what is not factored lies in rows of that width. As many threads make the means of rows and
// columns, and the rates of a tensor.
constexpr int adafactor_rows = 128;
constexpr int adafactor_threads = 1024;

// Where a tensor's sums, means and rates are between the passes.
struct AdafactorScratch {
  double* squares;       // of the parameter, then of the update: a sum for each tile
  double* totals;        // of the rows' new means: a sum for each block that makes them
  float* line_sums;      // of squares, as the gradient lies: [tiles across][lines of all matrices]
  float* column_sums;    // [tiles down, of all matrices][columns]
  float* row_means;      // new, of all matrices
  float* column_factors; // of all matrices
  float* rates;
};

// Rows and columns are of each of its matrices. `transposed`: the gradient's matrices lie
// transposed, and its lines are the columns. `splits`: how many threads add up the sums of a row,
// of a column.
struct AdafactorTensor {
  const void* in[5]; // parameter; means of rows or of elements; of columns; first moment; gradient
  void* out[4];
  AdafactorScratch scratch;
  long long size, rows, columns, matrices;
  unsigned first_tile, tiles;
  unsigned first_means;
  short row_split, column_split;
  short factored, transposed;
  unsigned short group;
};

// `group_uniforms`: as of Table. `skip_nonfinite`: true if the step is skipped where the gradients'
// scale is not finite.
template <int capacity>
struct AdafactorTable {
  const float* group_uniforms;
  int count;
  int skip_nonfinite;
  AdafactorTensor tensors[capacity];
};

// A tensor with operands of any layout. That of the elements has the strides of the parameter, the
// running means, the first moment and the gradient.
struct AdafactorStrided {
  const float* group_uniforms;
  int count;
  int skip_nonfinite;
  AdafactorTensor tensors[1];
  Layout<4> elements;
  Layout<1> row_means, column_means;
};

} // namespace cuda
} // namespace mlx_opt
