// The text that NVRTC compiles. Knows neither CUDA nor MLX, so that it can be tested without.
#pragma once

#include <cstdint>
#include <string>

#include "mlx_opt/step/scalars.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::cuda {

using mlx_opt::Storage;

enum class Kind : uint8_t {
  prepare,
  flat,
  transposed,
  strided,
  squares,
  strided_squares,
  norm,
  clip,
  // Adafactor's, in the order of their launches
  factor_prepare,
  factor_squares,
  factor_means,
  factor_update_squares,
  factor_rates,
  factor_update
};

/// Which kernel: a rule's way over tensors of these storages, in tables of `capacity`. The kernels
/// of the norm and of Adafactor have no rule. The storage of the norm's operand is `in[0]`. Those
/// of Adafactor's passes are, in this order, where a pass has them: the parameter, the means of the
/// squares of elements (or of rows, then of columns), the first moment and the gradient.
struct Kernel {
  Rule rule;
  Kind kind;
  int capacity = 0;                  // of a table; 0 where a tensor of any layout takes its place
  Storage in[max_moments + 2] = {};  // parameter, moments, gradient
  Storage out[max_moments + 1] = {}; // parameter, moments
  Scaling scaling = Scaling::none;   // of the gradient
  int lanes = 0;                     // Adafactor's elements of a thread in a line
  bool first_moment = false;         // whether Adafactor's has one

  /// A number of its own for each kernel.
  uint64_t id() const;
};

/// The name of every kernel in its own program.
inline constexpr const char* kernel_name = "mlx_opt_kernel";

/// The whole program of a kernel.
std::string source(const Kernel& kernel);

} // namespace mlx_opt::cuda
