// In place of {fmt}: MLX's lru_cache.h, which its CUDA headers include, formats one error message.
#pragma once

#include <string>

namespace fmt {

template <typename... Args>
std::string format(const char* text, const Args&...) {
  return text;
}

} // namespace fmt
