// The primitive of a step of Adafactor.
#pragma once

#include "mlx_opt/graph/step_primitive.h"

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

} // namespace mlx_opt
