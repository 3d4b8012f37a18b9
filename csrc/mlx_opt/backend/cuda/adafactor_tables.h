// The parameters of Adafactor's kernels, besides tables.h. Compiled by the host's compiler and by
// NVRTC.
#pragma once
#include "tables.h"

namespace mlx_opt {
namespace cuda {

// Matrices are divided into tiles of adafactor_rows rows, as wide as a warp loads at once. Tensors
// that are not factored are divided into rows of that width. adafactor_threads threads compute the
// means of rows and columns, and a tensor's rates.
constexpr int adafactor_rows = 128;
constexpr int adafactor_threads = 512;

// A tensor's memory between the passes: sums, means and rates.
struct AdafactorScratch {
  double* squares;       // sums of squares of the parameter, then of the update: one for each tile
  double* totals;        // sums of the rows' new means: one for each block that computes them
  float* line_sums;      // of squares, along the gradient: [tiles across][lines of all matrices]
  float* column_sums;    // [tiles down, of all matrices][columns]
  float* row_means;      // new, of all matrices
  float* column_factors; // of all matrices
  float* rates;
};

// `rows` and `columns` are those of each matrix. `transposed`: the gradient's matrices are stored
// transposed, so its lines are the columns. `row_split`, `column_split`: how many threads add up
// the partial sums of a row, of a column.
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

// `group_uniforms`: as in Table. `skip_nonfinite`: true if the step is skipped where the gradients'
// scale is not finite.
template <int capacity>
struct AdafactorTable {
  const float* group_uniforms;
  int count;
  int skip_nonfinite;
  AdafactorTensor tensors[capacity];
};

// A tensor with operands of any layout. `elements`: the strides of the parameter, the running
// means, the first moment and the gradient.
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
