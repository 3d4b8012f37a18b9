#include "mlx_opt/algorithms/muon.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mlx/ops.h"
#include "mlx_opt/graph/composition.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

using Arrays = std::vector<mx::array>;

bool is_matrix(const mx::array& x) {
  return x.ndim() >= 2 && x.size() > 0;
}

// The first dimension by all others.
mx::array matrix_of(const mx::array& x, mx::Stream stream) {
  return x.ndim() == 2 ? x : mx::reshape(x, {x.shape(0), -1}, stream);
}

// The factor of the learning rate.
double adjustment(AdjustLr adjust_lr, const mx::array& x) {
  if (adjust_lr == AdjustLr::original) {
    return std::sqrt(std::max(1.0, double(x.shape(-2)) / x.shape(-1)));
  }
  const double rows = x.shape(0), columns = double(x.size()) / rows;
  return 0.2 * std::sqrt(std::max(rows, columns));
}

// Replaces the matrices by their orthogonal factors.
void orthogonalize(Arrays& directions, const Muon& hypers, size_t stack, mx::Stream stream) {
  Arrays matrices;
  std::vector<double> scales;
  for (const mx::array& x : directions) {
    if (is_matrix(x)) {
      matrices.push_back(matrix_of(x, stream));
      scales.push_back(adjustment(hypers.adjust_lr, x));
    }
  }
  auto factors = orthogonalized(
      matrices, scales, hypers.ns_coefficients, hypers.ns_steps, hypers.ns_dtype, stack, stream);
  auto factor = factors.begin();
  for (mx::array& x : directions) {
    if (is_matrix(x)) {
      x = mx::reshape(*factor++, x.shape(), stream);
    }
  }
}

// The scale of the descent: 1, or NaN if the step is skipped. Its gradients come from scaled ones.
std::optional<GradientScale> finite_only(
    const std::optional<GradientScale>& scale, mx::Stream stream) {
  if (!scale || !scale->skip_nonfinite) {
    return std::nullopt;
  }
  const mx::array nan(std::numeric_limits<float>::quiet_NaN());
  const mx::array finite = mx::isfinite(scale->value, stream);
  return GradientScale{mx::where(finite, mx::array(1.0f), nan, stream), true};
}

class MuonStep : public Composition {
 public:
  MuonStep(Muon options, size_t stack) : options_(std::move(options)), stack_(stack) {}

  Arrays successors(const Request& request, Arrays operands) const override {
    const auto& [hypers, learning_rate, step] = request.groups.at(0);
    const mx::Stream stream = request.stream;
    Arrays parameters;
    for (size_t i = 0; i < operands.size(); i += 3) {
      parameters.push_back(operands[i]);
    }
    auto coupled = hypers;
    Scalar& decay = coupled[position_of(Rule::Muon, "weight_decay")];
    const Scalar decoupled = options_.decoupled_weight_decay ? decay : Scalar(0.0);
    if (options_.decoupled_weight_decay) {
      decay = 0.0;
    }
    Arrays results = mlx_opt::step(
        Rule::Muon, std::move(operands), coupled, learning_rate, step, stream, request.scale);
    Arrays directions;
    for (size_t i = 0; i < results.size(); i += 2) {
      directions.push_back(std::move(results[i]));
    }
    orthogonalize(directions, options_, stack_, stream);
    Arrays descent;
    for (size_t i = 0; i < parameters.size(); ++i) {
      descent.push_back(std::move(parameters[i]));
      descent.push_back(std::move(directions[i]));
    }
    // SGD adds the decay to its gradient, which is the direction here: that subtracts learning rate
    // * decay * parameter, which is decoupled decay.
    Arrays successors = mlx_opt::step(
        Rule::SGD,
        std::move(descent),
        {decoupled},
        learning_rate,
        step,
        stream,
        finite_only(request.scale, stream));
    for (size_t i = 0; i < successors.size(); ++i) {
      results[2 * i] = std::move(successors[i]);
    }
    return results;
  }

 private:
  Muon options_;
  size_t stack_;
};

} // namespace

Program muon_program(const Muon& options, size_t stack) {
  if (options.ns_steps < 0) {
    refuse(Rule::Muon, "ns_steps must be 0 or more, got " + std::to_string(options.ns_steps));
  }
  if (options.ns_coefficients.empty()) {
    refuse(Rule::Muon, "ns_coefficients must have at least one triple");
  }
  if (options.ns_dtype && !is_storage(*options.ns_dtype)) {
    refuse(
        Rule::Muon,
        std::string("ns_dtype must be float32, float16 or bfloat16, got ") +
            dtype_text(*options.ns_dtype));
  }
  return Program(Rule::Muon, false, std::make_shared<MuonStep>(options, stack));
}

} // namespace mlx_opt
