#include "mlx_opt/graph/masters.h"

#include <deque>

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

mx::array bits(uint32_t value) {
  return mx::array(value, mx::uint32);
}

// As `joined` in rules/master.h.
mx::array joined(const mx::array& parameter, const mx::array& remainder, mx::Stream s) {
  const mx::array wide = mx::astype(parameter, mx::float32, s);
  const mx::array low = mx::astype(remainder, mx::uint32, s);
  const mx::array borrowed = mx::where(mx::less(low, bits(0x8000), s), bits(0), bits(0x10000), s);
  const mx::array sum = mx::subtract(mx::add(mx::view(wide, mx::uint32, s), low, s), borrowed, s);
  const mx::array weight = mx::view(sum, mx::float32, s);
  return mx::where(mx::isnan(weight, s), wide, weight, s);
}

// As `split` in rules/master.h: the parameter and the remainder.
std::pair<mx::array, mx::array> split(const mx::array& weight, mx::Stream s) {
  const mx::array all =
      mx::where(mx::isnan(weight, s), bits(0x7fc00000), mx::view(weight, mx::uint32, s), s);
  const mx::array high = mx::right_shift(mx::add(all, bits(0x8000), s), bits(16), s);
  return {
      mx::view(mx::astype(high, mx::uint16, s), mx::bfloat16, s),
      mx::astype(mx::bitwise_and(all, bits(0xffff), s), mx::uint16, s)};
}

} // namespace

// As `weight_of` in rules/master.h.
mx::array weight_of(const mx::array& parameter, const mx::array& master, mx::Stream stream) {
  if (master.dtype() == mx::uint16) {
    return joined(parameter, master, stream);
  }
  const mx::array wide = mx::astype(parameter, mx::float32, stream);
  const mx::array rounded =
      mx::astype(mx::astype(master, parameter.dtype(), stream), mx::float32, stream);
  return mx::where(
      mx::equal(rounded, wide, stream), mx::astype(master, mx::float32, stream), wide, stream);
}

namespace {

// The leaves with their weights for parameters, and without master weights.
class LeavesOfWeights {
 public:
  LeavesOfWeights(const Program& program, const Leaves& leaves, mx::Stream stream)
      : leaves_(program, leaves.size()), stream_(stream) {}

  void add(size_t kind, uint16_t group, mx::array* const* operands, int count, bool has_master) {
    auto& arrays = leaves_.add(kind, group).arrays;
    if (!has_master) {
      arrays.insert(arrays.end(), operands, operands + count);
      return;
    }
    const int slots = count - 3; // between the parameter and the master
    arrays.push_back(hold(weight_of(*operands[0], *operands[slots + 1], stream_)));
    for (int k = 1; k <= slots; ++k) {
      arrays.push_back(hold(mx::astype(*operands[k], mx::float32, stream_)));
    }
    arrays.push_back(operands[count - 1]);
  }

  const Leaves& leaves() const {
    return leaves_;
  }

 private:
  mx::array* hold(mx::array x) {
    return &arrays_.emplace_back(std::move(x));
  }

  Leaves leaves_;
  std::deque<mx::array> arrays_; // that `leaves_` points to
  mx::Stream stream_;
};

} // namespace

std::vector<mx::array> step_on_masters(const Request& request, const Leaves& leaves, Step& step) {
  const Program& program = *request.program;
  const Program of_weights = program.without_masters();
  LeavesOfWeights weights(of_weights, leaves, request.stream);
  std::vector<mx::Dtype> dtypes; // of each leaf's parameter
  std::vector<int> outputs;      // of each leaf's weight
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const auto& [operands, members, arrays, groups, _] = leaves.kinds()[kind];
    const bool has_master = program.has_master(kind);
    for (size_t i = 0; i < members.size(); ++i) {
      auto* const* leaf = &arrays[i * operands];
      weights.add(kind % of_weights.kinds(), groups[i], leaf, operands, has_master);
      dtypes.push_back(leaf[0]->dtype());
      outputs.push_back(operands - 1 - has_master);
    }
  }
  Request inner = request;
  inner.program = &of_weights;
  auto results = step(inner, weights.leaves());
  std::vector<std::vector<mx::array>> of_leaves(leaves.size());
  auto next = results.begin();
  for (size_t leaf : weights.leaves().order()) {
    std::move(next, next + outputs[leaf], std::back_inserter(of_leaves[leaf]));
    next += outputs[leaf];
  }
  std::vector<mx::array> all;
  size_t leaf = 0;
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    for (size_t i = 0; i < leaves.kinds()[kind].leaves.size(); ++i, ++leaf) {
      auto& own = of_leaves[leaf];
      if (program.has_master(kind)) {
        const mx::array weight = own[0];
        if (program.masters() == MasterWeights::remainder) {
          auto [parameter, remainder] = split(weight, request.stream);
          own[0] = std::move(parameter);
          own.push_back(std::move(remainder));
        } else {
          own[0] = mx::astype(weight, dtypes[leaf], request.stream);
          own.push_back(weight);
        }
      }
      std::move(own.begin(), own.end(), std::back_inserter(all));
    }
  }
  return all;
}

} // namespace mlx_opt
