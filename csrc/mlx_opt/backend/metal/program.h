// What the programs of all kernels have in common.
#pragma once

#include <cstdint>
#include <string>

namespace mlx_opt::metal {

enum class Storage : uint8_t { float32, float16, bfloat16 };

/// The class that the kernels' text has for it.
const char* format_of(Storage storage);

/// In names of kernels.
const char* short_name_of(Storage storage);

/// The end of a parameter that lies in a buffer.
std::string slot(int index);

/// The name of a kernel of this version.
std::string versioned(const std::string& name);

/// The program of a kernel, given by its text.
std::string program_of(const std::string& kernel);

} // namespace mlx_opt::metal
