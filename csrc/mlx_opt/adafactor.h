// The primitive of a step of Adafactor.
#pragma once

#include "mlx_opt/update.h"

namespace mlx_opt {

/// Operands of a tensor: the parameter; the running means of its rows' and columns' squares where
/// it is factored, else of its elements'; the first moment, if there is one; the gradient.
class AdafactorUpdate : public TokenStep {
 public:
  AdafactorUpdate(
      mx::Stream stream,
      ScalarSources sources,
      bool factored,
      bool first_moment,
      std::vector<mx::Dtype> dtypes)
      : TokenStep(stream, 3 + factored + first_moment, std::move(dtypes)),
        sources_(std::move(sources)),
        factored_(factored),
        first_moment_(first_moment) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::shared_ptr<TokenStep> again() const override;

  const char* name() const override {
    return "mlx_opt::AdafactorUpdate";
  }

 private:
  ScalarSources sources_;
  bool factored_;
  bool first_moment_;
};

} // namespace mlx_opt
