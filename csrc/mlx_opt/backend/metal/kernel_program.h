// What the texts of all kernels have in common.
#pragma once

#include <string>
#include <string_view>

#include "mlx_opt/backend/gpu/formats.h"
#include "mlx_opt/backend/gpu/texts.h"
#include "mlx_opt/backend/metal/tables.h"

namespace mlx_opt::metal {

using gpu::format_of;
using gpu::list_of;
using mlx_opt::Storage;

/// The storage in kernels' names.
const char* short_name_of(Storage storage);

/// A kernel's name among all versions' and in MLX's store of libraries.
std::string versioned(std::string what);

/// The attribute of a kernel's parameter, and its end.
std::string slot(int index);

/// A kernel's text up to its second parameter. `address_space`: of the first;
/// `arguments`: the type of the second, a reference or a pointer.
std::string beginning_of(
    const std::string& name,
    const char* address_space,
    const std::string& arguments,
    unsigned threads_of_group);

/// The files of the kernels. Made by the build.
const gpu::Texts& texts();

/// The files that the kernels of a rule need, of which `rule_header` defines it, besides those of
/// its drivers.
std::string files_of(std::string_view rule_header);

/// The whole program of a kernel that needs these files.
std::string program_of(const std::string& files, const std::string& kernel);

} // namespace mlx_opt::metal
