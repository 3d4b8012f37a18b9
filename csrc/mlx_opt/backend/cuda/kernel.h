// The keys that identify kernels. Depends on neither CUDA nor MLX.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string_view>
#include <type_traits>
#include <variant>

#include "mlx_opt/step/scaling.h"
#include "mlx_opt/types/master_weights.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::cuda {

/// The maximum number of operands of a tensor that a kernel reads, and that it writes.
inline constexpr int max_operands = 24;

/// The storages of a tensor's operands, in order.
class Storages {
 public:
  Storages() = default;
  Storages(std::initializer_list<Storage> all) {
    for (Storage storage : all) {
      add(storage);
    }
  }

  /// The caller makes sure that there are fewer than max_operands.
  void add(Storage storage) {
    all_[count_++] = storage;
  }

  int count() const {
    return count_;
  }

  const Storage* data() const {
    return all_.data();
  }

  Storage operator[](int k) const {
    return all_[k];
  }

  auto operator<=>(const Storages&) const = default;

  // Compares whole words, because a step compares the storages of every tensor.
  bool operator==(const Storages& other) const {
    return std::memcmp(this, &other, sizeof *this) == 0;
  }

 private:
  uint8_t count_ = 0;
  std::array<Storage, max_operands> all_{}; // float32 past the count
};

static_assert(std::has_unique_object_representations_v<Storages>);

/// Computes a rule's uniforms for up to `capacity` groups.
struct PrepareKernel {
  std::string_view rule;
  int hypers;
  int capacity;
  bool has_ema = false; // true if the last of the hypers is the rate of the average

  auto operator<=>(const PrepareKernel&) const = default;
};

/// How a kernel walks over a tensor. flat: all operands are contiguous. transposed: the gradient is
/// a transposed matrix, the other operands are contiguous. strided: any layout.
enum class Walk : uint8_t { flat, transposed, strided };

/// What a kernel updates. whole: everything, by an elementwise rule. For a rule of two passes,
/// state: each chunk's sums, and the slots if the first pass updates them; finish: the parameter,
/// from the new slots; finish_with_gradient: what is left, from the gradient too.
enum class Pass : uint8_t { whole, state, finish, finish_with_gradient };

/// Updates tensors by a rule, in tables of `capacity` tensors; 0 for a strided tensor, which has a
/// launch of its own.
struct UpdateKernel {
  Walk walk;
  Scaling scaling;
  int capacity;
  Storages in;  // parameter, slots, and the gradient if the pass reads it
  Storages out; // parameter and slots that the pass writes
  std::string_view rule;
  Pass pass = Pass::whole;
  bool clips = false;                          // true if elements of the gradient are clipped
  MasterWeights masters = MasterWeights::none; // if not none, the operands behind the slots
  bool rounds = false;  // true if results in bfloat16 are rounded stochastically
  bool has_ema = false; // if true, the last in and out but the gradient
  int scales = 0;       // slots of codes, each with scales besides what is in and out
  int sums = 0;         // that the pass `state` takes over a tensor

  /// The number of addresses of a tensor that the kernel reads, and that it writes. The last of
  /// these is the tensor's sums in the pass `state`, its rates in the second one, and no address
  /// but the key of its random bits if it rounds stochastically. Scales are behind all of these.
  int inputs() const {
    return in.count() + scales;
  }
  int outputs() const {
    return out.count() + (pass != Pass::whole || rounds) + scales;
  }

  auto operator<=>(const UpdateKernel&) const = default;
};

/// Computes the rates of tensors from the sums of their chunks, in tables of `capacity` tensors.
struct RatesKernel {
  std::string_view rule;
  int capacity;

  auto operator<=>(const RatesKernel&) const = default;
};

/// Sums the squares of each chunk of tensors, in tables of `capacity` tensors; 0 for a strided
/// tensor.
struct SquaresKernel {
  Storage storage;
  int capacity;

  auto operator<=>(const SquaresKernel&) const = default;
};

/// Adds up the chunks' sums and takes the square root.
struct NormKernel {
  auto operator<=>(const NormKernel&) const = default;
};

/// Computes the gradient scale from the norm.
struct ClipKernel {
  auto operator<=>(const ClipKernel&) const = default;
};

/// Adafactor's launches after that of the scalars, in order.
enum class AdafactorPass : uint8_t { squares, means, update_squares, rates, update };

/// A pass over tensors in tables of `capacity` tensors; 0 for a strided tensor. The storages are
/// those that the pass uses, in this order: the parameter, the running means of elements (or of
/// rows, then of columns), the first moment and the gradient.
struct AdafactorKernel {
  AdafactorPass pass;
  bool first_moment; // true if there is one; used by AdafactorPass::update only
  int vector_width;  // elements of a thread in a line; 0 for AdafactorPass::rates
  int capacity;
  Storages in;
  Storages out;
  bool clips = false; // true if elements of the gradient are clipped

  auto operator<=>(const AdafactorKernel&) const = default;
};

/// Two keys are equal if they stand for the same kernel.
using Kernel = std::variant<
    PrepareKernel,
    UpdateKernel,
    RatesKernel,
    SquaresKernel,
    NormKernel,
    ClipKernel,
    AdafactorKernel>;

} // namespace mlx_opt::cuda
