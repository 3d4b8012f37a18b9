// What the kernels of the norm take, besides tables.h: the host's compiler and Metal's both read
// this.
#pragma once

namespace mlx_opt {
namespace metal {

enum : unsigned { norm_chunk = 16384 }; // elements whose squares a threadgroup sums

// A sum of squares, (high + low) * 4^exponent: where there is no double, high is the float next
// to it and low what that lacks, and an exponent of its own keeps squares from overflow and
// underflow.
struct Sum {
  float high;
  float low;
  int exponent;
};

// What clipping goes by that the host knows.
struct Clip {
  float max_norm;          // the greatest norm,
  unsigned traced;         // unless that is read from its buffer
  unsigned skip_nonfinite; // true if steps whose norm is not finite are skipped
};

} // namespace metal
} // namespace mlx_opt
