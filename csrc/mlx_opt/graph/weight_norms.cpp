#include "mlx_opt/graph/weight_norms.h"

#include <cmath>

#include "mlx/ops.h"
#include "mlx_opt/graph/masters.h"

namespace mlx_opt {
namespace {

mx::array wide(const mx::array& x, mx::Stream s) {
  return mx::astype(x, mx::promote_types(x.dtype(), mx::float32), s);
}

// The sum of all elements. On the CPU MLX adds them up one after another, which loses digits, so
// they are summed in rows if they can be.
mx::array sum(const mx::array& x, mx::Stream s) {
  constexpr int few = 1024;
  const int size = static_cast<int>(x.size());
  int length = static_cast<int>(std::sqrt(static_cast<double>(x.size())));
  while (size > few && length > 1 && size % length != 0) {
    --length;
  }
  if (size <= few || length == 1) {
    return mx::sum(x, s);
  }
  return sum(mx::sum(mx::reshape(x, {size / length, length}, s), 1, false, s), s);
}

// The sum of the squares in float32, or in the dtype of the array if that is wider.
mx::array sum_of_squares(const mx::array& x, mx::Stream s) {
  const bool is_complex = mx::issubdtype(x.dtype(), mx::complexfloating);
  const mx::array size = is_complex ? mx::abs(x, s) : x;
  return mx::astype(sum(mx::square(size, s), s), mx::float32, s);
}

} // namespace

void WeightNorms::add(size_t group, const mx::array& before, const mx::array& after) {
  if (after.size() == 0) {
    return; // CUDA's kernels that mx.compile fuses divide by the size
  }
  const mx::array weight = wide(after, stream_);
  const mx::array update = mx::subtract(weight, wide(before, stream_), stream_);
  squares_[2 * group].push_back(sum_of_squares(update, stream_));
  squares_[2 * group + 1].push_back(sum_of_squares(weight, stream_));
}

void WeightNorms::add(const mx::array& norms) {
  of_groups_.push_back(mx::square(norms, stream_));
}

mx::array WeightNorms::norms() const {
  std::vector<mx::array> sums;
  for (const auto& squares : squares_) {
    sums.push_back(
        squares.empty() ? mx::array(0.0f) : mx::sum(mx::stack(squares, 0, stream_), stream_));
  }
  const int groups = static_cast<int>(squares_.size() / 2);
  mx::array rows = mx::reshape(mx::stack(sums, 0, stream_), {groups, 2}, stream_);
  for (const mx::array& squares : of_groups_) {
    rows = mx::add(rows, squares, stream_);
  }
  return mx::sqrt(rows, stream_);
}

bool kernels_take_norms(const Program& program, mx::Device device) {
  const Rule rule = program.rule();
  return device == mx::Device::cpu && program.is_fused() &&
         (is_elementwise(rule) || has_two_passes(rule));
}

size_t place_of_master(const Program& program, size_t kind) {
  const size_t behind = program.has_ema() + static_cast<size_t>(program.scales(kind));
  return program.has_master(kind) ? program.slots(kind).size() - behind : 0;
}

mx::array norms_of(
    const Request& request, const Leaves& leaves, const std::vector<mx::array>& results) {
  const mx::Stream s = request.stream;
  WeightNorms norms(request.groups.size(), s);
  auto result = results.begin();
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const auto& [operands, members, arrays, groups, _] = leaves.kinds()[kind];
    const size_t master = place_of_master(*request.program, kind);
    auto operand = arrays.begin();
    for (uint16_t group : groups) {
      if (master > 0) {
        norms.add(
            group,
            weight_of(*operand[0], *operand[master], s),
            weight_of(*result, result[master], s));
      } else {
        norms.add(group, *operand[0], *result);
      }
      operand += operands;
      result += operands - 1;
    }
  }
  return norms.norms();
}

} // namespace mlx_opt
