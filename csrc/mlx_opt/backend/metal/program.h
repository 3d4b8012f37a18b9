// What the texts of all kernels have in common.
#pragma once

#include <cstdint>
#include <string>

#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt::metal {

enum class Storage : uint8_t { float32, float16, bfloat16 };

/// The storage's format in the kernels, and its name in theirs.
const char* format_of(Storage storage);
const char* short_name_of(Storage storage);

/// A list of formats.
std::string list_of(const Storage* storages, int count);

/// A kernel's name among all versions' and in the store of libraries.
std::string versioned(std::string what);

/// The attribute of a kernel's parameter, and its end.
std::string slot(int index);

/// A kernel's text up to its second parameter; `arguments`: the second's type; `frame`: the address
/// space of the first.
std::string beginning_of(
    const std::string& name, const std::string& arguments, const char* frame, int threads_of_group);

/// The text of the kernel that makes a rule's scalars.
std::string prepare_of(const std::string& name, const std::string& rule, int hypers);

/// The whole program of a kernel.
std::string program_of(const std::string& kernel);

} // namespace mlx_opt::metal
