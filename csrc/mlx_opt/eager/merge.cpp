#include "mlx_opt/eager/merge.h"

#include <algorithm>
#include <iterator>

#include "mlx_opt/graph/ops.h"

namespace mlx_opt {
namespace {

bool same_array(const std::optional<mx::array>& a, const std::optional<mx::array>& b) {
  return a.has_value() == b.has_value() && (!a || a->id() == b->id());
}

bool same_scale(const std::optional<GradientScale>& a, const std::optional<GradientScale>& b) {
  return a.has_value() == b.has_value() &&
         (!a || (a->value.id() == b->value.id() && a->skip_nonfinite == b->skip_nonfinite &&
                 same_array(a->max_value, b->max_value)));
}

bool can_share(const Part& a, const Part& b) {
  const Program& program = *a.request.program;
  const Program& other = *b.request.program;
  return program.is_like(other) && program.composition() == other.composition() &&
         same_scale(a.request.scale, b.request.scale);
}

// The number of outputs of each kind of leaves.
std::vector<size_t> counts_of(const Leaves& leaves) {
  std::vector<size_t> counts;
  for (const Leaves::Kind& kind : leaves.kinds()) {
    counts.push_back(kind.leaves.size() * (kind.operands - 1));
  }
  return counts;
}

} // namespace

MergedParts merged(std::vector<Part> parts) {
  MergedParts merged;
  for (Part& part : parts) {
    const auto first = std::find_if(merged.parts.begin(), merged.parts.end(), [&](const Part& x) {
      return can_share(x, part);
    });
    merged.places.push_back(static_cast<size_t>(first - merged.parts.begin()));
    if (first == merged.parts.end()) {
      merged.parts.push_back(std::move(part));
      continue;
    }
    auto& groups = first->request.groups;
    first->leaves.append(part.leaves, static_cast<uint16_t>(groups.size()));
    std::move(part.request.groups.begin(), part.request.groups.end(), std::back_inserter(groups));
  }
  return merged;
}

// A merged part has the leaves of each kind in the order of its parts.
std::vector<std::vector<mx::array>> successors_of_parts(std::vector<Part> parts) {
  std::vector<std::vector<size_t>> counts;
  for (const Part& part : parts) {
    counts.push_back(counts_of(part.leaves));
  }
  const auto [all, places] = merged(std::move(parts));
  std::vector<std::vector<mx::array>> results(counts.size());
  for (size_t place = 0; place < all.size(); ++place) {
    const Part& part = all[place];
    auto outputs = successors(part.request, part.leaves);
    auto next = outputs.begin();
    for (size_t kind = 0; kind < part.leaves.kinds().size(); ++kind) {
      for (size_t i = 0; i < counts.size(); ++i) {
        if (places[i] == place) {
          const auto end = next + static_cast<std::ptrdiff_t>(counts[i][kind]);
          std::move(next, end, std::back_inserter(results[i]));
          next = end;
        }
      }
    }
  }
  return results;
}

} // namespace mlx_opt
