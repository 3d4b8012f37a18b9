// The counters of the fake of CUDA.
#pragma once

#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace fake {

struct Launch {
  unsigned blocks;
  unsigned threads;
};

struct Log {
  std::vector<Launch> launches; // that have been run
  std::vector<std::string> errors;
};

Log& log();

/// The streams of two fake GPUs, of compute capability 9.0 and 7.5.
extern const mlx::core::Stream gpu_stream;
extern const mlx::core::Stream older_gpu_stream;

/// Holds an array's data until the GPU has finished all that is queued on a stream, as MLX does.
void hold(const mlx::core::array& x, mlx::core::Stream stream);

/// The number of commits to a stream.
int commits(mlx::core::Stream stream);

/// Runs everything that is queued on a stream.
void finish(mlx::core::Stream stream);

} // namespace fake
