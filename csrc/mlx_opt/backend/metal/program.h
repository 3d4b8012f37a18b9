// What the texts of all kernels have in common.
#pragma once

#include <cstdint>
#include <string>

#include "mlx_opt/backend/gpu/formats.h"
#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt::metal {

using gpu::format_of;
using gpu::list_of;
using mlx_opt::Storage;

/// The storage in kernels' names.
const char* short_name_of(Storage storage);

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
