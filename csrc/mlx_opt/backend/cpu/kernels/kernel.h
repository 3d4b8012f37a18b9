// The interface of the vector kernels. Plain data: the kernels are compiled once for each
// instruction set and must not share inline functions with anything else.
#pragma once

#include <cstdint>

#include "mlx_opt/rules/codes.h"
#include "mlx_opt/rules/list.h"
#include "mlx_opt/rules/portable.h"
#include "mlx_opt/types/export.h"
#include "mlx_opt/types/master_weights.h"
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
  const Layout* layout;    // null: row-contiguous, as codes are
  float* scales = nullptr; // of codes
};

/// A kernel processes a transposed gradient in panels of this many rows.
inline constexpr int64_t transposed_rows = 16;

/// True if an operand is a matrix whose columns are contiguous.
static inline bool is_transposed(const Operand& operand) {
  const Layout* layout = operand.layout;
  return layout && layout->ndim == 2 && layout->strides[0] == 1;
}

/// The elements of a block of codes.
inline constexpr int64_t coded_block = MLX_OPT_LEVEL::elements_of_block;

/// One parameter. In: its value, its slots, its gradient and, if it has them, its master weight and
/// the average of its weights; out: its value, its slots, its master weight and the average. An
/// output may share the buffer of a contiguous input of the same storage.
struct Tensor {
  const Operand* in;
  const Operand* out;
  MasterWeights masters;
  bool has_ema = false;
  bool has_codes = false;    // then ranges of elements begin and end with blocks of codes
  bool rounds = false;       // true if results in bfloat16 are rounded stochastically
  uint32_t rounding_key = 0; // of the tensor
};

/// True if a kernel processes the tensor, whose gradient is `gradient`, in panels of rows.
static inline bool has_panels(const Tensor& tensor, const Operand& gradient) {
  return is_transposed(gradient) &&
         (!tensor.has_codes || gradient.layout->shape[1] % coded_block == 0);
}

/// A rule compiled for one instruction set. Hyperparameters and scalars are the rule's Hypers and
/// Scalars, as floats; so are sums and rates. If the gradient is transposed, `begin` and `end` are
/// multiples of a panel, or the end of the tensor.
struct Kernel {
  /// Computes the step's scalars from the hyperparameters, the learning rate and the step's number.
  void (*prepare)(const float* hypers, float lr, float step, float* scalars);
  /// Updates the elements [begin, end), with the gradients scaled. `step`: its number, which is
  /// read if the tensor rounds stochastically.
  void (*run)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      float step);
  /// Copies the operands to the results. Runs instead of `run` if the step is skipped.
  void (*copy_through)(const Tensor& tensor, int64_t begin, int64_t end);
  /// As `run`, and adds the sums of squares that WeightSquares takes, in registers. Stops where it
  /// cannot, and returns the end of what it has updated. Null if there is none.
  int64_t (*run_with_squares)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      double* totals);

  // The rest is for a rule of two passes, which has no `run`.

  /// The first pass: updates the state of the elements [begin, end), if the rule has it do so, and
  /// adds to the sums.
  void (*sum)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      double* sums);
  /// Computes a tensor's rates from its sums.
  void (*rates)(const double* sums, const float* hypers, const float* scalars, float* rates);
  /// The second pass: updates what the first one has not of the elements [begin, end).
  void (*finish)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      const float* rates);
};

/// Moves the averages of the elements [begin, end) to their weights, which the step has updated, by
/// `rate`; compiled for one instruction set. `slots`: the number of the rule's.
using UpdateEma = void(const Tensor& tensor, int slots, int64_t begin, int64_t end, float rate);

/// The sums of a rule over all tensors, compiled for one instruction set.
struct SumKernel {
  /// Computes what the sums depend on from the hyperparameters, the learning rate and the step's
  /// number: at most `max_sum_scalars` numbers.
  void (*prepare)(const float* hypers, float lr, float step, float* scalars);
  /// Adds to the sums those of the elements [begin, end).
  void (*sum)(
      const Tensor& tensor,
      int64_t begin,
      int64_t end,
      const float* hypers,
      const float* scalars,
      Scale scale,
      double* sums);
};

inline constexpr int max_sum_scalars = 8;

/// Reductions compiled for one instruction set. All sets give the same result.
struct Reductions {
  /// The sum of the squares of the elements [begin, end).
  double (*sum_of_squares)(const Operand& operand, int64_t begin, int64_t end);
};

/// The sums of the squares of a step's updates, and of its weights after them, compiled for one
/// instruction set: added to the first and the second of `totals`.
struct WeightSquares {
  /// For parameters without master weights: adds those of the elements [begin, end) and puts the
  /// new parameters, which are in `fresh`, to their place.
  void (*put)(
      const Tensor& tensor, const Operand& fresh, int64_t begin, int64_t end, double* totals);

  // For all, in two steps. `slots`: the number of the rule's.

  /// Writes the weights before the step to `to`.
  void (*load_before)(const Tensor& tensor, int slots, int64_t begin, int64_t end, float* to);
  /// Adds those of the elements [begin, end), of which `before` has the weights before the step.
  void (*add)(
      const Tensor& tensor,
      int slots,
      int64_t begin,
      int64_t end,
      const float* before,
      double* totals);
};

/// The kernel of `rule` for the best instruction set of this machine, or for the one that the
/// environment variable MLX_OPT_VECTOR_LEVEL names.
MLX_OPT_API const Kernel& kernel(Rule rule);
MLX_OPT_API const SumKernel& sum_kernel(Rule rule);
MLX_OPT_API const Reductions& reductions();
MLX_OPT_API UpdateEma& update_ema();
MLX_OPT_API const WeightSquares& weight_squares();

/// Name of that instruction set: "baseline", "avx2", "avx512", "avx512bf16" or "neon".
MLX_OPT_API const char* vector_level();

} // namespace mlx_opt::cpu
