// The addresses of operands, and launches of kernels.
#pragma once

#include <cuda.h>

#include "mlx/array.h"
#include "mlx/backend/cuda/device.h"
#include "mlx/backend/cuda/utils.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

template <typename T>
T* address(const mx::array& x) {
  return mx::gpu_ptr<T>(const_cast<mx::array&>(x));
}

inline void* address(mx::allocator::Buffer buffer) {
  return static_cast<mx::cu::CudaBuffer*>(buffer.ptr())->data;
}

/// Queues a kernel with the single parameter `parameter`.
void launch(
    mx::cu::CommandEncoder& encoder,
    CUfunction function,
    unsigned blocks,
    int threads,
    void* parameter);

} // namespace mlx_opt::cuda
