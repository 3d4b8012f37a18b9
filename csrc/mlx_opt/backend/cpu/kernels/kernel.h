// What a vector kernel takes and how one is found. Plain data: the kernels are compiled once per
// instruction set and must not share inline functions with anything else.
#pragma once

#include <cstdint>

#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/export.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::cpu {

using mlx_opt::Storage;

/// Shape and strides (in elements) of an operand that is not row-contiguous.
struct Layout {
  const int64_t* shape;
  const int64_t* strides;
  int ndim;
};

struct Operand {
  void* data;
  Storage storage;
  const Layout* layout; // null: row-contiguous
};

/// A kernel takes a transposed gradient by panels of this many rows.
inline constexpr int64_t transposed_rows = 16;

/// True if an operand is a matrix whose columns are contiguous.
static inline bool is_transposed(const Operand& operand) {
  const Layout* layout = operand.layout;
  return layout && layout->ndim == 2 && layout->strides[0] == 1;
}

/// One parameter: its own value, its slots and its gradient in; its value and its slots out.
/// An output may be the buffer of a contiguous input of the same storage.
struct Tensor {
  Operand in[max_slots + 2];
  Operand out[max_slots + 1];
};

/// A rule compiled for one instruction set. Hyperparameters and scalars are the rule's Hypers and
/// Scalars, as floats; so are sums and rates. Elements [begin, end) are at the start of a panel, or
/// the end, where the gradient is transposed.
struct Kernel {
  /// The step's scalars from the hyperparameters, the learning rate and the step's number.
  void (*prepare)(const float* hypers, float lr, float step, float* scalars);
  /// Updates the elements [begin, end). The gradient is multiplied with `scale` first.
  void (*run)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      float scale);
  /// What stands for the step where it is skipped: the elements stay as they are.
  void (*copy_through)(const Tensor& tensor, int64_t begin, int64_t end);

  // Of a rule of two passes, which has no `run`.

  /// The first pass: updates the state of the elements [begin, end) and gives what they add to the
  /// sums.
  void (*sum)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      float scale,
      double* sums);
  /// What the sums over a tensor give.
  void (*rates)(const double* sums, const float* hypers, const float* scalars, float* rates);
  /// The second pass: updates the parameter's elements [begin, end) once all state is updated.
  void (*finish)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      const float* rates);
};

/// Reductions compiled for one instruction set; all sets give the same.
struct Reductions {
  /// Of the elements [begin, end).
  double (*sum_of_squares)(const Operand& operand, int64_t begin, int64_t end);
};

/// The kernel of `rule` for the best instruction set this machine has, or the one that the
/// environment variable MLX_OPT_VECTOR_LEVEL names.
MLX_OPT_API const Kernel& kernel(Rule rule);
MLX_OPT_API const Reductions& reductions();

/// Name of that instruction set: "baseline", "avx2", "avx512", "avx512bf16" or "neon".
MLX_OPT_API const char* vector_level();

} // namespace mlx_opt::cpu
