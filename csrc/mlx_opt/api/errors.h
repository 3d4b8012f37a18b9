// How the C++ interface refuses what it cannot do.
#pragma once

#include <stdexcept>
#include <string>

namespace mlx_opt {

[[noreturn]] inline void reject(const std::string& what) {
  throw std::invalid_argument("mlx_opt: " + what);
}

} // namespace mlx_opt
