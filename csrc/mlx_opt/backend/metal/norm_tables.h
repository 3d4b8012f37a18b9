// The arguments of the norm's kernels, besides tables.h. Compiled by the host's compiler and by
// Metal's.
#pragma once

namespace mlx_opt {
namespace metal {

enum : unsigned { norm_chunk = 16384 }; // elements whose squares a threadgroup sums

// A sum of squares, (high + low) * 4^exponent. Metal has no double: high is the nearest float, low
// the remainder, and the separate exponent keeps squares from overflow and underflow.
struct Sum {
  float high;
  float low;
  int exponent;
};

// The arguments of clipping that the host knows.
struct Clip {
  float max_norm;          // the greatest norm,
  unsigned traced;         // unless that is read from its buffer
  unsigned skip_nonfinite; // true if steps whose norm is not finite are skipped
};

} // namespace metal
} // namespace mlx_opt
