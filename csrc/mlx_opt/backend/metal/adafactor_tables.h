// The arguments of Adafactor's kernels, besides tables.h. Compiled by the host's compiler and by
// Metal's.
#pragma once

#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt {
namespace metal {

// Matrices are divided into tiles in the orientation of the gradient in memory; tensors that are
// not factored, into chunks.
enum : unsigned {
  adafactor_lines = 64, // of a tile
  adafactor_columns = 256,
  adafactor_across = 32, // adjacent threads in a line
  adafactor_own = adafactor_columns / adafactor_across,
  adafactor_pitch = adafactor_across + 1, // odd, so that threads of a column use different banks
  adafactor_staged = adafactor_lines * adafactor_pitch, // floats of a threadgroup
};

enum : int { scratch_slot = operands_slot }; // of a pass; behind it its operands

// Offsets of a tensor's sums, means and rates in its scratch memory, in floats.
struct AdafactorScratch {
  unsigned long parameter_squares; // one sum for each part of the tensor: a tile, or a chunk
  unsigned long update_squares;
  unsigned long rates;
  unsigned long means;  // the mean of the rows' means of each matrix
  unsigned long totals; // of the rows' new means: one sum for each threadgroup that computes them
  unsigned long line_sums;      // of squares, along the gradient: [across][lines of all matrices]
  unsigned long column_sums;    // [tiles down, of all matrices][columns]
  unsigned long row_means;      // new, of all matrices
  unsigned long column_factors; // of all matrices
};

// `rows` and `columns` are those of each matrix. `transposed`: the gradient's matrices are stored
// transposed, so its lines are the columns. `row_split`, `column_split`: how many threads add up
// the partial sums of a row, of a column.
struct AdafactorTensor {
  unsigned long size;
  AdafactorScratch scratch;
  unsigned rows, columns, matrices;
  unsigned parts;
  unsigned row_split, column_split;
  unsigned transposed;
  unsigned vectors; // whether vectors can be loaded along the gradient's lines, from all operands
  unsigned row_vectors;    // along the rows of all operands but a transposed gradient
  unsigned skip_nonfinite; // true if the step is skipped where the gradients' scale is not finite
  unsigned group;
};

// The arguments of a pass over operands with the layout of the results, or with a transposed
// gradient.
struct AdafactorArguments {
  AdafactorTensor tensor;
};

// The arguments for operands of any layout. `elements`: the layouts of the gradient, the parameter,
// the running means of elements and the first moment, if the tensor has them.
struct AdafactorStrided {
  AdafactorTensor tensor;
  Layout<4> elements;
  Layout<1> row_means, column_means;
};

} // namespace metal
} // namespace mlx_opt
