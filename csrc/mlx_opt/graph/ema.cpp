#include "mlx_opt/graph/ema.h"

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

// As `averaged` in rules/ema.h.
mx::array averaged(
    const mx::array& average, const mx::array& weight, const mx::array& rate, mx::Stream s) {
  const mx::array moved = mx::multiply(rate, mx::subtract(weight, average, s), s);
  const mx::array one(1.0f);
  const mx::array is_mixed =
      mx::logical_and(mx::equal(average, average, s), mx::less(rate, one, s), s);
  return mx::where(is_mixed, mx::add(average, moved, s), weight, s);
}

mx::array rate_of(const GroupScalars& group, mx::Stream s) {
  const Scalar& rate = group.hypers.back();
  if (const auto* x = std::get_if<mx::array>(&rate)) {
    return mx::astype(*x, mx::float32, s);
  }
  return mx::array(static_cast<float>(std::get<double>(rate)));
}

} // namespace

std::vector<mx::array> step_with_ema(const Request& request, const Leaves& leaves, Step& step) {
  const mx::Stream s = request.stream;
  const Program without_ema = request.program->without_ema();
  Leaves inner_leaves(without_ema, leaves.size());
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const Leaves::Kind& all = leaves.kinds()[kind];
    for (size_t i = 0; i < all.leaves.size(); ++i) {
      auto* const* leaf = &all.arrays[i * all.operands];
      auto& inner = inner_leaves.add_as(kind, all, i).arrays;
      inner.insert(inner.end(), leaf, leaf + all.operands - 2);
      inner.push_back(leaf[all.operands - 1]);
    }
  }
  Request inner = request;
  inner.program = &without_ema;
  std::vector<mx::array> rates;
  for (GroupScalars& group : inner.groups) {
    rates.push_back(rate_of(group, s));
    group.hypers.pop_back();
  }
  const auto results = step(inner, inner_leaves);
  std::vector<mx::array> all;
  auto next = results.begin();
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const auto& [operands, members, arrays, groups, _] = leaves.kinds()[kind];
    for (size_t i = 0; i < members.size(); ++i) {
      const mx::array& before = *arrays[i * operands];
      const mx::array average = mx::astype(*arrays[(i + 1) * operands - 2], mx::float32, s);
      const mx::array parameter = mx::astype(*next++, before.dtype(), s);
      all.push_back(parameter);
      all.insert(all.end(), next, next + operands - 3);
      next += operands - 3;
      const mx::array weight = request.program->has_master(kind)
                                   ? weight_of(parameter, all.back(), s)
                                   : mx::astype(parameter, mx::float32, s);
      mx::array after = averaged(average, weight, rates[groups[i]], s);
      if (request.scale && request.scale->skip_nonfinite) {
        after = mx::where(mx::isfinite(request.scale->value, s), after, average, s);
      }
      all.push_back(std::move(after));
    }
  }
  return all;
}

} // namespace mlx_opt
