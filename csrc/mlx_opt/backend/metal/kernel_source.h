// The keys that identify kernels, and the text that Metal compiles. Depends on neither Metal nor
// MLX, so that it can be tested without them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "mlx_opt/backend/metal/operands.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/step/scaling.h"
#include "mlx_opt/types/master_weights.h"

namespace mlx_opt::metal {

/// The maximum number of scalars for which a dispatch of PrepareKernel has slots.
inline constexpr int scalar_slots = slots - operands_slot;

/// Computes a rule's uniforms for each group, from up to `capacity` scalars.
struct PrepareKernel {
  std::string_view rule;
  int capacity;
  bool has_ema = false;

  bool operator==(const PrepareKernel&) const = default;
};

/// How a kernel walks over a tensor. flat: all operands are contiguous. transposed: the gradient is
/// a transposed matrix, the other operands are contiguous. strided: any layout, fewer than 2^32
/// elements; strided_long: any number.
enum class Walk : uint8_t { flat, transposed, strided, strided_long };

/// Updates tensors by a rule, `capacity` of them in a dispatch; more than 1 only if flat.
struct UpdateKernel {
  std::string_view rule;
  Walk walk;
  Scaling scaling;
  int capacity;
  Operands operands;
  MasterWeights masters = MasterWeights::none; // if not none, the operands behind the slots
  bool rounds = false;  // true if results in bfloat16 are rounded stochastically
  bool has_ema = false; // if true, the operands behind those
  int scales = 0;       // of slots of codes; if more than 0, the last operands but the gradient

  /// The number of operands that are the rule's: the parameter, its slots, its master weight
  /// and its average.
  int fields() const {
    return static_cast<int>(operands.out.size()) - scales;
  }

  bool operator==(const UpdateKernel&) const = default;
};

/// The kernel's name in its program, and the program's in MLX's store of libraries. It encodes
/// everything that the text depends on.
std::string name(const PrepareKernel& kernel);
std::string name(const UpdateKernel& kernel);

/// The whole program of a kernel. `rule_header`: the text that defines the rule, if it is not the
/// library's.
std::string source(const PrepareKernel& kernel);
std::string source(const UpdateKernel& kernel);
std::string source(const PrepareKernel& kernel, std::string_view rule_header);
std::string source(const UpdateKernel& kernel, std::string_view rule_header);

/// The part of a kernel's name that distinguishes it from the rule's others.
std::string words_of(const UpdateKernel& kernel);

/// The type of a kernel's arguments, with strides for `operands` operands.
std::string arguments_of(const UpdateKernel& kernel, int operands);

/// Text that finds which of a dispatch's tensors a threadgroup works on, `which`, and its operands.
/// `at(tensor)`: the text of a tensor's operands.
std::string choice_of(const UpdateKernel& kernel, const std::function<std::string(int)>& at);

} // namespace mlx_opt::metal
