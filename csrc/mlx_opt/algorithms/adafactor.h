// A step of Adafactor, its primitive, and its arguments, checked.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "mlx_opt/graph/check.h"
#include "mlx_opt/graph/step_primitive.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

/// The tensors are in the order of Factoring, and so are the operands of each.
class AdafactorUpdate : public TokenStep {
 public:
  AdafactorUpdate(
      mx::Stream stream, ScalarSources sources, Factoring factoring, std::vector<mx::Dtype> dtypes)
      : TokenStep(
            stream,
            {{factoring.unfactored, factoring.operands(false)},
             {factoring.factored, factoring.operands(true)}},
            std::move(dtypes)),
        sources_(std::move(sources)),
        factoring_(factoring) {}

  std::unique_ptr<Prepared> prepare(const Pointers& inputs, Start) override;

  std::shared_ptr<TokenStep> again() const override;

  const char* name() const override {
    return "mlx_opt::AdafactorUpdate";
  }

 private:
  ScalarSources sources_;
  Factoring factoring_;
};

/// As checked_step, over operands as `adafactor` has them.
std::shared_ptr<TokenStep> checked_adafactor(
    const Pointers& operands,
    size_t unfactored,
    bool first_moment,
    const Given& given,
    std::vector<mx::array>& scalars);

/// One step of Adafactor (Shazeer and Stern, arXiv:1804.04235).
///
/// `operands`: for each tensor its parameter; the running means of the squares of its elements if
/// it is one of the first `unfactored`, else of its rows (its shape without the last dimension) and
/// of its columns (without the last but one); where there is a `first_moment` that; and its
/// gradient. `hypers`: those of rules/adafactor.h, in order. The rest and the results are as of
/// `step`.
///
/// Throws std::invalid_argument where the arguments do not fit, or the device has no backend.
MLX_OPT_API std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    size_t unfactored,
    bool first_moment,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s = {},
    const std::optional<GradientScale>& scale = std::nullopt);

} // namespace mlx_opt
