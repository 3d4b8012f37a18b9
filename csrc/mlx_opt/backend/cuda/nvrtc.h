// NVIDIA's run-time compiler. libmlx brings the library along.
#pragma once

#include <string>

namespace mlx_opt::cuda {

/// A compute capability, as 90 for 9.0.
using Architecture = int;

/// "13.0".
std::string compiler_version();

/// How a program is compiled for an architecture: to machine code where the compiler knows it; to
/// the newest intermediate code that it knows, which the driver translates, where the architecture
/// is newer. Throws std::runtime_error where the architecture is older than all it knows.
std::string target_option(Architecture architecture);

/// Compiles `source` for `target`, an answer of target_option, and returns what cuModuleLoadData
/// takes. Throws std::runtime_error with the compiler's log. `log`: where the log of a success
/// goes, with what the assembler has to say, if it is wanted.
std::string compile(const std::string& source, const std::string& target, std::string* log);

} // namespace mlx_opt::cuda
