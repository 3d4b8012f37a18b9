// The text that NVRTC compiles. Knows neither CUDA nor MLX, so that it can be tested without.
#pragma once

#include <cstdint>
#include <string>

#include "mlx_opt/schedule.h"

namespace mlx_opt::cuda {

enum class Storage : uint8_t { float32, float16, bfloat16 };

enum class Kind : uint8_t { prepare, flat, transposed, strided, squares, strided_squares, norm };

/// Which kernel: a rule's way over tensors of these storages, in tables of `capacity`. The kernels
/// of the norm have no rule, and the storage of their operand in `in[0]`.
struct Kernel {
  Rule rule;
  Kind kind;
  int capacity = 0;                  // flat, transposed and squares
  Storage in[max_moments + 2] = {};  // parameter, moments, gradient
  Storage out[max_moments + 1] = {}; // parameter, moments
  Scaling scaling = Scaling::none;   // of the gradient

  /// A number of its own for each kernel.
  uint64_t id() const;
};

/// The name of every kernel in its own program.
inline constexpr const char* kernel_name = "mlx_opt_kernel";

/// The whole program of a kernel.
std::string source(const Kernel& kernel);

} // namespace mlx_opt::cuda
