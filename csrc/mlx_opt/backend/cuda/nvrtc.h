// NVIDIA's run-time compiler. libmlx loads the library.
#pragma once

#include <string>

namespace mlx_opt::cuda {

/// A compute capability: 90 for 9.0.
using Architecture = int;

/// For example "13.0".
std::string compiler_version();

/// The compiler's target for an architecture: machine code if the compiler knows it; for a newer
/// architecture the newest intermediate code, which the driver translates. Throws
/// std::runtime_error if the architecture is older than all that the compiler knows.
std::string target_option(Architecture architecture);

/// Compiles `source` for `target`, a result of target_option, and returns what cuModuleLoadData
/// takes. Throws std::runtime_error with the compiler's log. `log`: if not null, receives the log
/// of a successful compilation, with the assembler's messages.
std::string compile(const std::string& source, const std::string& target, std::string* log);

} // namespace mlx_opt::cuda
