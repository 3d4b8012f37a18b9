// The buffers of a tensor in a kernel, and their names in its text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::metal {

/// The value of `written` for an output that has a buffer of its own.
inline constexpr int8_t apart = -1;

/// The operands of a tensor that a kernel reads and writes.
struct Operands {
  std::vector<Storage> in;     // parameter, state, gradient
  std::vector<Storage> out;    // parameter, state
  std::vector<int8_t> written; // for each output the input whose buffer it overwrites, or apart

  /// Number of buffer slots of a tensor. A buffer that is read and overwritten is bound once.
  int slots() const;

  /// True if a result overwrites that input.
  bool overwrites(int input) const;

  bool operator==(const Operands&) const = default;
};

/// The maximum number of tensors for which a dispatch has slots, of which `first` is the first.
/// Throws std::runtime_error if there are too few for one.
int max_per_pack(const Operands& operands, int first = operands_slot);

/// The parameters of a kernel's tensors, from slot `first` on: for each tensor the inputs, then the
/// outputs with a buffer of their own.
std::string parameters_of(const Operands& operands, int tensors, int first);

/// The names of a tensor's inputs [0, count), and of its outputs, separated by commas.
std::string inputs_of(int tensor, int count);
std::string outputs_of(const Operands& operands, int tensor);

/// The names of the inputs and outputs [first, end).
std::string inputs_of(int tensor, int first, int end);
std::string outputs_of(const Operands& operands, int tensor, int first, int end);

/// The name of one input.
std::string input_of(int tensor, int k);

} // namespace mlx_opt::metal
