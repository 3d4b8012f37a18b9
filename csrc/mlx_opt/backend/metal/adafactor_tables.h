// What Adafactor's kernels take, besides tables.h: the host's compiler and Metal's both read this.
#pragma once

#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt {
namespace metal {

// Adafactor's matrices are cut into tiles, as their gradient lies; what is not factored into
// chunks.
enum : unsigned {
  adafactor_lines = 64, // of a tile
  adafactor_columns = 256,
  adafactor_across = 32, // threads side by side in a line
  adafactor_own = adafactor_columns / adafactor_across,
  adafactor_pitch = adafactor_across + 1, // threads that go down a column then use different banks
  adafactor_staged = adafactor_lines * adafactor_pitch, // floats of a threadgroup
};

enum : int { scratch_slot = operands_slot }; // of a pass; behind it its operands

// Where a tensor's sums, means and rates are in its scratch, in floats.
struct AdafactorScratch {
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

// Rows and columns are of each of its matrices. `transposed`: the gradient's matrices lie
// transposed, and its lines are the columns. `splits`: how many threads add up the sums of a row,
// of a column.
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

// What a pass takes: of operands that lie as the results do, or with a transposed gradient.
struct AdafactorArguments {
  AdafactorTensor tensor;
};

// Of operands of any layout. `elements`: of the gradient, the parameter, the means of the squares
// of elements and the first moment, where a tensor has them.
struct AdafactorStrided {
  AdafactorTensor tensor;
  Layout<4> elements;
  Layout<1> row_means, column_means;
};

} // namespace metal
} // namespace mlx_opt
