// What tells kernels apart, and the texts that Metal compiles. Knows neither Metal nor MLX, so that
// it can be tested without.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/step/scaling.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::metal {

/// The most scalars that a dispatch of PrepareKernel has slots for.
inline constexpr int scalar_slots = slots - operands_slot;

/// Computes the scalars of a rule for each group, and reads up to `capacity` scalars for that.
struct PrepareKernel {
  std::string_view rule;
  int capacity;

  bool operator==(const PrepareKernel&) const = default;
};

/// Where an output of a tensor is written that has a buffer of its own.
inline constexpr int8_t apart = -1;

/// What a kernel reads and writes of a tensor.
struct Operands {
  std::vector<Storage> in;     // parameter, state, gradient
  std::vector<Storage> out;    // parameter, state
  std::vector<int8_t> written; // of each output the input whose buffer it overwrites, or apart

  /// Slots that a tensor takes: a buffer that is read and overwritten is bound once.
  int slots() const;

  /// True if a result is written where that input is read.
  bool overwrites(int input) const;

  bool operator==(const Operands&) const = default;
};

/// How an update goes through a tensor: its operands are contiguous; so but for the gradient, which
/// is a transposed matrix; they lie anyhow and are of fewer than 2^32 elements; of any number.
enum class Walk : uint8_t { flat, transposed, strided, strided_long };

/// Updates tensors by a rule, `capacity` of them a dispatch; more than 1 only where flat.
struct UpdateKernel {
  std::string_view rule;
  Walk walk;
  Scaling scaling;
  int capacity;
  Operands operands;

  bool operator==(const UpdateKernel&) const = default;
};

/// The most tensors that a dispatch has slots for. Throws std::runtime_error if it has none for
/// one.
int most_in_a_pack(const Operands& operands);

/// The kernel's name in the program and the program's in MLX's store of libraries: it says
/// everything that the text depends on.
std::string name(const PrepareKernel& kernel);
std::string name(const UpdateKernel& kernel);

/// The whole program of a kernel. `rule_header`: the text that defines the rule, if not the
/// library's.
std::string source(const PrepareKernel& kernel);
std::string source(const UpdateKernel& kernel);
std::string source(const PrepareKernel& kernel, std::string_view rule_header);
std::string source(const UpdateKernel& kernel, std::string_view rule_header);

} // namespace mlx_opt::metal
