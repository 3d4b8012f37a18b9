// What tells kernels apart. Knows neither CUDA nor MLX.
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
#include "mlx_opt/types/storage.h"

namespace mlx_opt::cuda {

/// The most operands that a kernel reads of a tensor, and the most that it writes.
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

  /// There must be room: at most max_operands.
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

  // A step compares the storages of every tensor, so this is done by words.
  bool operator==(const Storages& other) const {
    return std::memcmp(this, &other, sizeof *this) == 0;
  }

 private:
  uint8_t count_ = 0;
  std::array<Storage, max_operands> all_{}; // float32 from the count on
};

static_assert(std::has_unique_object_representations_v<Storages>);

/// Computes the scalars of a rule for each group, of up to `capacity` groups.
struct PrepareKernel {
  std::string_view rule;
  int hypers;
  int capacity;

  auto operator<=>(const PrepareKernel&) const = default;
};

/// How an update goes through a tensor. flat: all operands are contiguous. transposed: all but the
/// gradient, which is a transposed matrix. strided: any layout.
enum class Walk : uint8_t { flat, transposed, strided };

/// What an update does with a tensor. whole: all of it, by an elementwise rule. Of a rule of two
/// passes, state: the state, and each chunk's sums; finish: the parameter, from the new state.
enum class Pass : uint8_t { whole, state, finish };

/// Updates tensors by a rule, in tables of `capacity`. That is 0 for a strided tensor, which has a
/// launch of its own.
struct UpdateKernel {
  Walk walk;
  Scaling scaling;
  int capacity;
  Storages in;  // parameter, state, and of a pass that reads it the gradient
  Storages out; // parameter, state, as far as the pass writes them
  std::string_view rule;
  Pass pass = Pass::whole;

  /// The addresses that a tensor has of what the kernel reads, and of what it writes. The last of
  /// these is in `state` where the tensor's sums go, in `finish` where its rates are.
  int inputs() const {
    return in.count();
  }
  int outputs() const {
    return out.count() + (pass == Pass::whole ? 0 : 1);
  }

  auto operator<=>(const UpdateKernel&) const = default;
};

/// Makes the rates of tensors of the sums of their chunks, in tables of `capacity`.
struct RatesKernel {
  std::string_view rule;
  int capacity;

  auto operator<=>(const RatesKernel&) const = default;
};

/// Sums the squares of tensors by chunks, in tables of `capacity`, which is 0 for one that is
/// strided.
struct SquaresKernel {
  Storage storage;
  int capacity;

  auto operator<=>(const SquaresKernel&) const = default;
};

/// Adds up those sums and takes the root.
struct NormKernel {
  auto operator<=>(const NormKernel&) const = default;
};

/// Computes what gradients of a norm are multiplied with.
struct ClipKernel {
  auto operator<=>(const ClipKernel&) const = default;
};

/// The launches of Adafactor behind that of the scalars, in order.
enum class AdafactorPass : uint8_t { squares, means, update_squares, rates, update };

/// A pass over tensors in tables of `capacity`, which is 0 for one that is strided. Storages are,
/// in this order, where the pass has them: of the parameter, of the means of the squares of
/// elements (or of rows, then of columns), of the first moment and of the gradient.
struct AdafactorKernel {
  AdafactorPass pass;
  bool first_moment; // whether there is one; false but for AdafactorPass::update
  int vector_width;  // elements of a thread in a line; 0 for AdafactorPass::rates
  int capacity;
  Storages in;
  Storages out;

  auto operator<=>(const AdafactorKernel&) const = default;
};

/// Kernels are the same if all of this is.
using Kernel = std::variant<
    PrepareKernel,
    UpdateKernel,
    RatesKernel,
    SquaresKernel,
    NormKernel,
    ClipKernel,
    AdafactorKernel>;

} // namespace mlx_opt::cuda
