// What the fake of CUDA has counted.
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

/// The fake GPU's streams: of one of compute capability 9.0, and of one of 7.5.
extern const mlx::core::Stream gpu_stream;
extern const mlx::core::Stream older_gpu_stream;

/// Keeps what an array has until the GPU has done all that is queued on a stream, as MLX does.
void hold(const mlx::core::array& x, mlx::core::Stream stream);

/// How often work has been committed to a stream.
int commits(mlx::core::Stream stream);

/// Lets the GPU do all that is queued on a stream.
void finish(mlx::core::Stream stream);

} // namespace fake
