// The buffers of a tensor as a kernel takes them, and as its text names them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::metal {

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

/// The most tensors that a dispatch has slots for, of which `first` is the first. Throws
/// std::runtime_error if it has none for one.
int max_per_pack(const Operands& operands, int first = operands_slot);

/// The parameters of a kernel's tensors, from slot `first` on: of each those that are read, then
/// those that are written apart.
std::string parameters_of(const Operands& operands, int tensors, int first);

/// The parameters of a tensor's inputs [0, count), and of its outputs, one after another.
std::string inputs_of(int tensor, int count);
std::string outputs_of(const Operands& operands, int tensor);

/// The parameter of one input.
std::string input_of(int tensor, int k);

} // namespace mlx_opt::metal
