#include "mlx_opt/algorithms/muon.h"

#include <limits>
#include <utility>

#include "mlx/ops.h"
#include "mlx_opt/algorithms/muon_factors.h"
#include "mlx_opt/graph/composition.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

// A leaf of the step, of whatever kind.
struct MuonLeaf {
  mx::array* const* operands; // the parameter, v, perhaps s, and the gradient
  int count;
  uint16_t group;

  bool has_second() const {
    return count == 4;
  }
};

std::vector<MuonLeaf> leaves_of(const Leaves& leaves) {
  std::vector<MuonLeaf> all;
  for (const auto& [operands, members, arrays, groups, _] : leaves.kinds()) {
    for (size_t i = 0; i < groups.size(); ++i) {
      all.push_back({&arrays[i * operands], operands, groups[i]});
    }
  }
  return all;
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
  MuonStep(Muon options, size_t stack, const std::optional<Formats>& formats)
      : momentum_(Rule::Muon, false, nullptr, formats),
        options_(std::move(options)),
        stack_(stack) {}

  Arrays successors(const Request& request, const Leaves& leaves) const override {
    const std::vector<MuonLeaf> all = leaves_of(leaves);
    Arrays moments = momentum(request, all);
    std::vector<Direction> directions;
    for (size_t i = 0; i < all.size(); ++i) {
      directions.push_back(direction(request, all[i], std::move(moments[2 * i])));
    }
    orthogonalize(directions, options_, stack_, request.stream);
    Arrays parameters = descended(request, all, directions);
    const SlotInfo& second = *request.program->wide_state_slots(2).back();
    Arrays results;
    for (size_t i = 0; i < all.size(); ++i) {
      results.push_back(std::move(parameters[i]));
      results.push_back(std::move(moments[2 * i + 1]));
      if (all[i].has_second()) {
        const mx::Dtype dtype = slot_dtype(second, all[i].operands[0]->dtype());
        results.push_back(kept(request, *directions[i].second, *all[i].operands[2], dtype));
      }
    }
    return results;
  }

 private:
  // The directions and the new momenta of all leaves.
  Arrays momentum(const Request& request, const std::vector<MuonLeaf>& all) const {
    Request momentum = request;
    momentum.program = &momentum_;
    for (GroupScalars& group : momentum.groups) {
      group.hypers.resize(hypers_of(Rule::Muon).size(), 0.0);
    }
    Leaves leaves(momentum_, all.size());
    for (const MuonLeaf& leaf : all) {
      auto& added = leaves.add(0, leaf.group).arrays;
      added.push_back(leaf.operands[0]);
      added.push_back(leaf.operands[1]);
      added.push_back(leaf.operands[leaf.count - 1]);
    }
    return mlx_opt::successors(momentum, leaves);
  }

  static Direction direction(const Request& request, const MuonLeaf& leaf, mx::array x) {
    const GroupScalars& group = request.groups[leaf.group];
    Direction direction{std::move(x), group.split, std::nullopt, 0.0};
    if (leaf.has_second()) {
      direction.second = *leaf.operands[2];
      direction.beta2 = group.hypers[position_of(request.program->rule(), "beta2")];
    }
    return direction;
  }

  // The successor of a slot or parameter, or what it was if the step is skipped.
  static mx::array kept(
      const Request& request, const mx::array& next, const mx::array& before, mx::Dtype dtype) {
    const mx::Stream s = request.stream;
    const mx::array stored = mx::astype(next, dtype, s);
    if (!request.scale || !request.scale->skip_nonfinite) {
      return stored;
    }
    const mx::array finite = mx::isfinite(request.scale->value, s);
    return mx::where(finite, stored, mx::astype(before, dtype, s), s);
  }

  // The new parameters. `directions`: the updates.
  Arrays descended(
      const Request& request,
      const std::vector<MuonLeaf>& all,
      std::vector<Direction>& directions) const {
    Arrays before;
    std::vector<mx::Dtype> dtypes;
    for (size_t i = 0; i < all.size(); ++i) {
      mx::array& update = directions[i].x;
      before.push_back(*all[i].operands[0]);
      dtypes.push_back(mx::promote_types(before[i].dtype(), update.dtype()));
      if (options_.hyperball && is_matrix(update)) {
        before[i] = mx::astype(before[i], mx::float32, request.stream);
        update = with_norm_of(update, before[i], request.stream);
      }
    }
    Leaves descent(descent_, all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      auto& added = descent.add(0, all[i].group).arrays;
      added.push_back(&before[i]);
      added.push_back(&directions[i].x);
    }
    Arrays after = mlx_opt::successors(descent_request(request), descent);
    for (size_t i = 0; i < all.size(); ++i) {
      if (options_.hyperball && is_matrix(after[i])) {
        const mx::array next = with_norm_of(after[i], before[i], request.stream);
        after[i] = kept(request, next, before[i], dtypes[i]);
      }
    }
    return after;
  }

  // The step of SGD, whose gradient is the direction. The direction has the decay that is coupled.
  Request descent_request(const Request& request) const {
    constexpr const char* decay[] = {
        "weight_decay", "weight_decay_kind", "max_learning_rate", "cautious_weight_decay"};
    Request descent{&descent_, {}, finite_only(request.scale, request.stream), request.stream};
    for (GroupScalars group : request.groups) {
      const bool coupled = is_coupled(request.program->rule(), group.hypers);
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

  const Program momentum_;
  const Program descent_ = Program(Rule::SGD);
  Muon options_;
  size_t stack_;
};

} // namespace

Program muon_program(const Muon& options, size_t stack, const std::optional<Formats>& formats) {
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
  if (options.normuon && options.adamuon) {
    refuse(Rule::Muon, "normuon and adamuon cannot be combined");
  }
  const Rule rule = options.normuon ? Rule::NorMuon : options.adamuon ? Rule::AdaMuon : Rule::Muon;
  auto step = std::make_shared<MuonStep>(options, stack, formats);
  return Program(rule, false, std::move(step), formats);
}

} // namespace mlx_opt
