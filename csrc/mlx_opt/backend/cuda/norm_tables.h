// What the kernels of the norm and of clipping take, besides tables.h: the host's compiler and
// NVRTC both read this.
#pragma once

namespace mlx_opt {
namespace cuda {

// Elements whose squares a block sums; the sums of all chunks, in order, and where their root goes.
constexpr int norm_chunk = 32768;
constexpr int norm_threads = 1024; // of the one block that sums the chunks

struct Sums {
  const double* of_chunks;
  long long count;
  float* norm;
};

// `traced_max_norm`: of the array, or where that is null the number.
struct Clip {
  const float* norm;
  const float* traced_max_norm;
  float max_norm;
  int skip_nonfinite;
  float* scale;
};

} // namespace cuda
} // namespace mlx_opt
