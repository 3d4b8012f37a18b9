// Arguments of Adafactor's vector kernels, as plain data; see kernel.h.
#pragma once

#include "mlx_opt/backend/cpu/kernels/kernel.h"

namespace mlx_opt::cpu {

/// One parameter: the rows and columns of matrices stored end to end, or one row if it is not
/// factored. A result may share the buffer of a contiguous operand of the same storage.
struct AdafactorTensor {
  Operand w, g;
  Operand m; // null data if there is no first moment
  Operand v; // the running mean of each element's squares; null data if it is factored
  Operand w_out, m_out, v_out;
  int64_t rows; // of a matrix
  int64_t columns;
  int64_t matrices;
  const float* row_factors; // of the rows of all matrices
  const float* column_factors;
};

/// Rows [top, bottom), counted over all matrices but within one, and columns [left, right).
struct Tile {
  int64_t top, bottom, left, right;
};

/// The sums of squares over a tile.
struct Squares {
  double parameter, update;
};

/// Adafactor compiled for one instruction set. `scale`: of the gradients.
struct AdafactorKernel {
  void (*prepare)(const float* hypers, float lr, float step, float* scalars);

  /// For a factored tensor: sums the gradient's squares over the tile's rows and columns. `rows`
  /// and `columns` point to the tile's first.
  void (*squares)(
      const AdafactorTensor& tensor, const Tile& tile, Scale scale, float* rows, float* columns);

  /// Updates running means: from `old` to `now` and, unrounded, to `values`, which hold the means
  /// of the new squares. Returns their sum.
  double (*average)(
      const Operand& old,
      const Operand& now,
      int64_t begin,
      int64_t count,
      float* values,
      const float* hypers,
      const float* scalars);

  /// Replaces the running means of rows, whose mean is `mean`, by the rows' factors; the same for
  /// columns.
  void (*row_factors)(float* values, int64_t count, float mean);
  void (*column_factors)(float* values, int64_t count);

  Squares (*update_squares)(
      const AdafactorTensor& tensor,
      const Tile& tile,
      Scale scale,
      const float* hypers,
      const float* scalars);

  /// The rule's Rates, from the root mean squares of the parameter and of the update.
  void (*rates)(
      float parameter, float update, const float* hypers, const float* scalars, float* rates);

  void (*update)(
      const AdafactorTensor& tensor,
      const Tile& tile,
      Scale scale,
      const float* hypers,
      const float* scalars,
      const float* rates);

  /// Copies the operands to the results. Runs instead of the other kernels if the step is skipped.
  void (*copy)(const Operand& from, const Operand& to, int64_t begin, int64_t end);
};

MLX_OPT_API const AdafactorKernel& adafactor_kernel();

} // namespace mlx_opt::cpu
