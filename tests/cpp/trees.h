// A small model's parameters and gradients, and functions on them that several tests use.
#pragma once

#include <algorithm>
#include <exception>
#include <string>

#include "mlx/mlx.h"
#include "mlx_opt/mlx_opt.h"

namespace trees {

inline mlx_opt::NamedArrays parameters() {
  return {{"bias", mlx::core::full({3}, 0.5f)}, {"layers.0.weight", mlx::core::full({2, 3}, 1.0f)}};
}

inline mlx_opt::NamedArrays gradients() {
  return {
      {"bias", mlx::core::full({3}, 0.25f)}, {"layers.0.weight", mlx::core::full({2, 3}, -2.0f)}};
}

inline bool equal(const mlx_opt::NamedArrays& a, const mlx_opt::NamedArrays& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
           return x.first == y.first && x.second.dtype() == y.second.dtype() &&
                  mlx::core::array_equal(x.second, y.second).template item<bool>();
         });
}

template <typename Call>
inline std::string message_of(Call&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

} // namespace trees
