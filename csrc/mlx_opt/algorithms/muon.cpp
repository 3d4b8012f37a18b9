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

  Arrays successors(const Request& request, const Leaves& leaves) const override {
    Request momentum = request;
    momentum.program = &momentum_;
    Arrays results = mlx_opt::successors(momentum, leaves);
    Arrays directions;
    for (size_t i = 0; i < results.size(); i += 2) {
      directions.push_back(std::move(results[i]));
    }
    orthogonalize(directions, options_, stack_, request.stream);
    const auto& [width, members, arrays, groups] = leaves.kinds()[0];
    Leaves descent(descent_, directions.size());
    for (size_t i = 0; i < directions.size(); ++i) {
      auto& added = descent.add(0, groups[i]).arrays;
      added.push_back(arrays[i * width]);
      added.push_back(&directions[i]);
    }
    Arrays successors = mlx_opt::successors(descent_request(request), descent);
    for (size_t i = 0; i < successors.size(); ++i) {
      results[2 * i] = std::move(successors[i]);
    }
    return results;
  }

 private:
  // The step of SGD, whose gradient is the direction. The direction has the decay that is coupled.
  Request descent_request(const Request& request) const {
    constexpr const char* decay[] = {
        "weight_decay", "weight_decay_kind", "max_learning_rate", "cautious_weight_decay"};
    Request descent{&descent_, {}, finite_only(request.scale, request.stream), request.stream};
    for (GroupScalars group : request.groups) {
      const bool coupled = is_coupled(Rule::Muon, group.hypers);
      std::vector<Scalar> hypers;
      for (const char* name : decay) {
        hypers.push_back(group.hypers[position_of(Rule::Muon, name)]);
      }
      if (coupled) {
        hypers[position_of(Rule::SGD, "weight_decay")] = 0.0;
      }
      group.hypers = std::move(hypers);
      descent.groups.push_back(std::move(group));
    }
    return descent;
  }

  const Program momentum_ = Program(Rule::Muon);
  const Program descent_ = Program(Rule::SGD);
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
