// The text that Metal compiles. Knows neither Metal nor MLX, so that it can be tested without.
#pragma once

#include <string>

#include "mlx_opt/backend/metal/program.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/step/scalars.h"

namespace mlx_opt::metal {

/// strided: of fewer than 2^32 elements; strided_long: of any number.
enum class Kind : uint8_t { prepare, flat, transposed, strided, strided_long };

/// Which kernel: a rule's way over tensors of these storages, `capacity` of them a dispatch.
struct Kernel {
  Rule rule;
  Kind kind;
  int capacity = 1;                  // more than 1 only where flat
  Storage in[max_moments + 2] = {};  // parameter, moments, gradient
  Storage out[max_moments + 1] = {}; // parameter, moments
  Scaling scaling = Scaling::none;   // of the gradient

  bool operator==(const Kernel&) const = default;
};

/// The most tensors that a dispatch has slots for.
constexpr int most_in_a_pack(Rule rule) {
  return (slots - operands_slot) / (2 * info(rule).moments + 3);
}

/// The kernel's name in the program and the program's in MLX's store of libraries: it says
/// everything that the text depends on.
std::string name(const Kernel& kernel);

/// The whole program of a kernel.
std::string source(const Kernel& kernel);

} // namespace mlx_opt::metal
