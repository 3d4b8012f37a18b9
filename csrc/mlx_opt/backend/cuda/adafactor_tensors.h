// The tensors of a step of Adafactor, grouped by the kernels that process them.
#pragma once

#include <array>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx_opt/backend/cuda/adafactor_tables.h"
#include "mlx_opt/backend/cuda/kernel.h"
#include "mlx_opt/backend/cuda/tables.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

/// Number of launches of a step after that of the scalars.
inline constexpr int adafactor_passes = 5;

/// Identifies the kernels of a tensor: the storages of AdafactorTensor's operands, and the number
/// of elements that a thread has in a line.
struct AdafactorKey {
  std::array<Storage, 5> from;
  std::array<Storage, 4> to;
  int vector_width = 0;

  bool operator==(const AdafactorKey&) const = default;
};

/// The tensors that the same kernels process.
struct AdafactorShare {
  AdafactorKey key;
  std::array<AdafactorKernel, adafactor_passes> kernels;
  std::vector<AdafactorTensor> tensors = {};
  std::vector<AdafactorStrided> layouts =
      {};                             // of each tensor if the layouts are arbitrary, else empty
  std::vector<size_t> positions = {}; // index of each tensor's parameter among the outputs

  /// Number of blocks that a pass has for a tensor.
  unsigned blocks(int pass, const AdafactorTensor& tensor) const;
};

class AdafactorShares {
 public:
  /// `spec`: its runs are the vectors, then the matrices. `dtypes`: of the outputs.
  AdafactorShares(
      const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes);

  int64_t scratch_bytes() const;

  /// Sets the addresses of the tensors' scratch memory and results.
  void place(char* scratch, const Buffers& outputs);

  std::vector<AdafactorShare>& all() {
    return shares_;
  }

 private:
  void add(
      const mx::array* const* arrays,
      const mx::Dtype* dtypes,
      bool factored,
      uint16_t group,
      size_t position);
  AdafactorShare& share_of(const AdafactorKey& key);

  bool first_moment_;
  bool clips_;
  std::vector<AdafactorShare> shares_;
};

} // namespace mlx_opt::cuda
