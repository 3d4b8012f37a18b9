#include "mlx_opt/eager/merge.h"

#include <algorithm>
#include <iterator>

namespace mlx_opt {
namespace {

bool same_scale(const std::optional<GradientScale>& a, const std::optional<GradientScale>& b) {
  return a.has_value() == b.has_value() &&
         (!a || (a->value.id() == b->value.id() && a->skip_nonfinite == b->skip_nonfinite));
}

bool can_share(const Part& a, const Part& b) {
  const Program& program = *a.request.program;
  const Program& other = *b.request.program;
  return program.rule() == other.rule() && program.operands(0) == other.operands(0) &&
         same_scale(a.request.scale, b.request.scale);
}

} // namespace

std::vector<Part> merged(std::vector<Part> parts) {
  std::vector<Part> merged;
  for (Part& part : parts) {
    const auto first = std::find_if(
        merged.begin(), merged.end(), [&](const Part& other) { return can_share(other, part); });
    if (first == merged.end()) {
      merged.push_back(std::move(part));
      continue;
    }
    auto& groups = first->request.groups;
    first->leaves.append(part.leaves, static_cast<uint16_t>(groups.size()));
    std::move(part.request.groups.begin(), part.request.groups.end(), std::back_inserter(groups));
  }
  return merged;
}

} // namespace mlx_opt
