// Common parts of all kernels' source text.
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

/// A storage's name in kernels' names.
const char* short_name_of(Storage storage);

/// A kernel's name with the library's version, which is unique in MLX's store of libraries.
std::string versioned(std::string what);

/// The buffer attribute of a kernel's parameter, and the end of its line.
std::string slot(int index);

/// A kernel's text up to its second parameter. `address_space`: of the first parameter;
/// `arguments`: the type of the second, a reference or a pointer.
std::string beginning_of(
    const std::string& name,
    const char* address_space,
    const std::string& arguments,
    unsigned threads_of_group);

/// The kernels' source files, which the build embeds.
const gpu::Texts& texts();

/// The source files that the kernels of a rule need, besides those of its drivers. `rule_header`:
/// the file that defines the rule.
std::string files_of(std::string_view rule_header);

/// The whole program of a kernel that needs `files`.
std::string program_of(const std::string& files, const std::string& kernel);

} // namespace mlx_opt::metal
