// What tells kernels apart, and the texts that Metal compiles. Knows neither Metal nor MLX, so that
// it can be tested without.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "mlx_opt/backend/metal/operands.h"
#include "mlx_opt/backend/metal/tables.h"
#include "mlx_opt/step/scaling.h"

namespace mlx_opt::metal {

/// The most scalars that a dispatch of PrepareKernel has slots for.
inline constexpr int scalar_slots = slots - operands_slot;

/// Computes the scalars of a rule for each group, and reads up to `capacity` scalars for that.
struct PrepareKernel {
  std::string_view rule;
  int capacity;

  bool operator==(const PrepareKernel&) const = default;
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

/// What tells a kernel from the rule's others, in its name.
std::string words_of(const UpdateKernel& kernel);

/// The type of a kernel's arguments, in which as many operands as that have strides.
std::string arguments_of(const UpdateKernel& kernel, int operands);

/// The text that finds which of a dispatch's tensors a threadgroup works on, `which`, and its
/// operands, of which `at(tensor)` is the text.
std::string choice_of(const UpdateKernel& kernel, const std::function<std::string(int)>& at);

} // namespace mlx_opt::metal
