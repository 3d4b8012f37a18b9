// The CUDA driver's error codes as exceptions.
#pragma once

#include <cuda.h>

#include <stdexcept>
#include <string>

namespace mlx_opt::cuda {

inline void check(CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) {
    const char* reason = nullptr;
    cuGetErrorString(result, &reason);
    throw std::runtime_error(
        std::string("mlx_opt: CUDA: ") + what + ": " + (reason ? reason : "unknown error"));
  }
}

} // namespace mlx_opt::cuda
