// Builds the text that NVRTC compiles. Depends on neither CUDA nor MLX, so that it can be tested
// without them.
#pragma once

#include <string>
#include <string_view>

#include "mlx_opt/backend/cuda/kernel.h"

namespace mlx_opt::cuda {

/// The name of every kernel in its own program.
inline constexpr const char* kernel_name = "mlx_opt_kernel";

/// The whole program of a kernel: the files that it needs and an instantiation.
std::string source(const Kernel& kernel);

/// The same for a rule that `rule_header` defines.
std::string source(const UpdateKernel& kernel, std::string_view rule_header);

} // namespace mlx_opt::cuda
