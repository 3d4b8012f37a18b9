// The tensors of a step of Adafactor as its kernels take them, grouped by kernels.
#pragma once

#include <array>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx_opt/backend/cuda/source.h"
#include "mlx_opt/backend/cuda/tables.h"
#include "mlx_opt/step/prepared.h"
#include "mlx_opt/step/scalars.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cuda {

namespace mx = mlx::core;

/// Kernels of a step behind the first, which makes the scalars: one each of the kinds from
/// factor_squares on.
inline constexpr int factor_passes = 5;

/// The tensors that the same kernels serve.
struct FactorGroup {
  uint64_t id; // of the kernels, among those of a step
  std::array<Kernel, factor_passes> kernels;
  std::vector<FactorTensor> tensors = {};
  std::vector<FactorStrided> layouts = {}; // of each tensor, where operands may lie anyhow; or none
  std::vector<size_t> positions = {};      // of each tensor's parameter among the outputs

  int lanes() const {
    return kernels[0].lanes;
  }

  /// Blocks of a pass for a tensor.
  unsigned blocks(int pass, const FactorTensor& tensor) const;
};

class FactorGroups {
 public:
  /// `inputs`, `dtypes`: of AdafactorUpdate.
  FactorGroups(
      const Factoring& factoring, const Pointers& inputs, const std::vector<mx::Dtype>& dtypes);

  int64_t scratch_bytes() const;

  /// Where the tensors' scratch and results are to be.
  void place(char* scratch, const Buffers& outputs);

  std::vector<FactorGroup>& all() {
    return groups_;
  }

 private:
  void add(const mx::array* const* arrays, const mx::Dtype* dtypes, bool factored, size_t position);
  bool first_moment_;
  std::vector<FactorGroup> groups_;
};

} // namespace mlx_opt::cuda
