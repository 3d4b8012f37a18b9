// A tensor of a step of Adafactor, in the form that its kernels take.
#pragma once

#include <array>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/metal/device.h"
#include "mlx_opt/backend/metal/adafactor_source.h"
#include "mlx_opt/backend/metal/adafactor_tables.h"
#include "mlx_opt/backend/metal/place.h"

namespace mlx_opt::metal {

/// Number of passes of a tensor, with a barrier between them.
inline constexpr int adafactor_passes = 5;

/// The operands of a tensor. `means`: of rows, or of elements.
enum AdafactorOperand : int { parameter, means, column_means, first_moment, gradient };

/// A kernel over a tensor and its number of threadgroups; no kernel if the tensor has no such pass.
struct AdafactorPass {
  AdafactorKernel kernel;
  std::vector<AdafactorOperand> in;
  std::vector<AdafactorOperand> out;
  uint64_t groups = 0;
  MTL::ComputePipelineState* pipeline = nullptr;
};

/// The operands that a tensor has, and the index of each among them.
struct AdafactorFields {
  bool factored;
  bool has_moment;

  int place_of(AdafactorOperand operand) const;
};

struct AdafactorPlan {
  AdafactorFields fields;
  AdafactorStrided arguments{}; // the layouts only where `strided`
  bool strided = false;
  std::vector<Place> in; // by place
  size_t first_output;
  uint64_t scratch_floats = 0;
  std::array<AdafactorPass, adafactor_passes> passes;

  /// `arrays`: the tensor's operands; `dtypes`: of its results; `skip_nonfinite`: true if the step
  /// is skipped where the gradients' scale is not finite.
  AdafactorPlan(
      AdafactorFields fields,
      const mx::array* const* arrays,
      const mx::Dtype* dtypes,
      size_t first_output,
      bool skip_nonfinite,
      unsigned group);

 private:
  void set_shape(const mx::array* const* arrays, bool transposed);
  void set_layouts(const mx::array* const* arrays);
  void set_scratch();
  void set_passes(const mx::array* const* arrays, const mx::Dtype* dtypes);
};

} // namespace mlx_opt::metal
