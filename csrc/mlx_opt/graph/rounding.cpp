#include "mlx_opt/graph/rounding.h"

#include <deque>

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

mx::array bits(uint32_t value) {
  return mx::array(value, mx::uint32);
}

// x ^ (x >> shift)
mx::array folded(const mx::array& x, uint32_t shift, mx::Stream s) {
  return mx::bitwise_xor(x, mx::right_shift(x, bits(shift), s), s);
}

// As in rules/rounding.h, and so the two functions below.
mx::array mixed(const mx::array& x, mx::Stream s) {
  const mx::array once = mx::multiply(folded(x, 16, s), bits(0x7feb352d), s);
  return folded(mx::multiply(folded(once, 15, s), bits(0x846ca68b), s), 16, s);
}

mx::array rounding_key(uint32_t tensor, const mx::array& step, uint32_t field, mx::Stream s) {
  const mx::array number = mx::view(mx::astype(step, mx::float32, s), mx::uint32, s);
  const mx::array of_step = mixed(mx::bitwise_xor(bits(tensor), mixed(number, s), s), s);
  return mixed(mx::add(of_step, bits(field * 0x9e3779b9u), s), s);
}

mx::array rounded(const mx::array& x, const mx::array& key, mx::Stream s) {
  const mx::array element =
      mx::reshape(mx::arange(0, static_cast<double>(x.size()), mx::uint32, s), x.shape(), s);
  const mx::array once = mx::multiply(mx::bitwise_xor(element, key, s), bits(0x7feb352d), s);
  const mx::array random = mx::multiply(folded(once, 15, s), bits(0x846ca68b), s);
  const mx::array whole = mx::view(x, mx::uint32, s);
  const mx::array up = mx::add(whole, mx::right_shift(random, bits(16), s), s);
  const mx::array infinite = bits(0x7f800000);
  const mx::array overflows = mx::equal(mx::bitwise_and(up, infinite, s), infinite, s);
  const mx::array cut = mx::bitwise_and(mx::where(overflows, whole, up, s), bits(0xffff0000), s);
  const mx::array result = mx::where(mx::isnan(x, s), x, mx::view(cut, mx::float32, s), s);
  return mx::astype(result, mx::bfloat16, s);
}

} // namespace

std::vector<mx::array> step_then_round(const Request& request, const Leaves& leaves, Step& step) {
  const Program nearest = request.program->without_rounding();
  Request inner = request;
  inner.program = &nearest;
  Leaves wide(nearest, leaves.size());
  std::deque<mx::array> arrays;  // that `wide` points to
  std::vector<mx::Dtype> dtypes; // of the results
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const auto& [operands, members, all, groups, keys] = leaves.kinds()[kind];
    const Slots& slots = request.program->slots(kind);
    for (size_t i = 0; i < members.size(); ++i) {
      auto* const* leaf = &all[i * operands];
      const bool coupled = is_coupled(request.program->rule(), request.groups[groups[i]].hypers);
      push_dtypes(slots, true, leaf, coupled, dtypes);
      auto& added = wide.add(kind, groups[i]).arrays;
      for (int k = 0; k < operands; ++k) {
        const bool is_set = 0 < k && k < operands - 1 && slots[k - 1]->format != Format::promoted;
        const bool is_narrow = leaf[k]->dtype() == mx::bfloat16;
        added.push_back(
            is_narrow && !is_set
                ? &arrays.emplace_back(mx::astype(*leaf[k], mx::float32, request.stream))
                : leaf[k]);
      }
    }
  }
  auto results = step(inner, wide);
  size_t next = 0;
  for (const Leaves::Kind& kind : leaves.kinds()) {
    for (size_t i = 0; i < kind.leaves.size(); ++i) {
      const mx::array& number = request.groups[kind.groups[i]].step;
      for (int field = 0; field < kind.operands - 1; ++field, ++next) {
        mx::array& x = results[next];
        if (dtypes[next] == mx::bfloat16 && x.dtype() == mx::float32) {
          const auto key = rounding_key(kind.rounding_keys[i], number, field, request.stream);
          x = rounded(x, key, request.stream);
        } else {
          x = mx::astype(x, dtypes[next], request.stream);
        }
      }
    }
  }
  return results;
}

} // namespace mlx_opt
