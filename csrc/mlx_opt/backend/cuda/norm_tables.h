// The parameters of the kernels of the norm and of clipping, besides tables.h. Compiled by the
// host's compiler and by NVRTC.
#pragma once

namespace mlx_opt {
namespace cuda {

// The number of elements whose squares a block sums.
constexpr int norm_chunk = 32768;
constexpr int norm_threads = 1024; // of the one block that sums the chunks

struct Sums {
  const double* of_chunks;
  long long count;
  float* norm;
};

// `traced_max_norm`: null if max_norm is the constant.
struct Clip {
  const float* norm;
  const float* traced_max_norm;
  float max_norm;
  int skip_nonfinite;
  float* scale;
};

} // namespace cuda
} // namespace mlx_opt
