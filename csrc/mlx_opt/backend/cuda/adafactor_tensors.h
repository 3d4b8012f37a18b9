// The tensors of a step of Adafactor as its kernels take them, by the kernels that serve them.
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

/// Launches of a step behind that of the scalars.
inline constexpr int adafactor_passes = 5;

/// What tells the kernels of tensors apart: storages of the operands of AdafactorTensor, and
/// elements of a thread in a line.
struct AdafactorKey {
  std::array<Storage, 5> from;
  std::array<Storage, 4> to;
  int vector_width = 0;

  bool operator==(const AdafactorKey&) const = default;
};

/// The tensors that the same kernels serve.
struct AdafactorShare {
  AdafactorKey key;
  std::array<AdafactorKernel, adafactor_passes> kernels;
  std::vector<AdafactorTensor> tensors = {};
  std::vector<AdafactorStrided> layouts =
      {};                             // of each tensor, where operands may lie anyhow; or none
  std::vector<size_t> positions = {}; // of each tensor's parameter among the outputs

  /// Blocks of a pass for a tensor.
  unsigned blocks(int pass, const AdafactorTensor& tensor) const;
};

class AdafactorShares {
 public:
  /// `spec`: its runs are of vectors and of matrices. `dtypes`: of the outputs.
  AdafactorShares(
      const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes);

  int64_t scratch_bytes() const;

  /// Where the tensors' scratch and results are to be.
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
  std::vector<AdafactorShare> shares_;
};

} // namespace mlx_opt::cuda
