#include "mlx_opt/eager/merge.h"

#include <algorithm>
#include <iterator>

#include "mlx/ops.h"
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
         !a.request.norms == !b.request.norms && same_scale(a.request.scale, b.request.scale);
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
    const bool is_first = first == merged.parts.end();
    merged.norms.push_back(
        {part.request.norms,
         is_first ? 0 : static_cast<int>(first->request.groups.size()),
         static_cast<int>(part.request.groups.size())});
    if (is_first) {
      merged.parts.push_back(std::move(part));
      continue;
    }
    auto& groups = first->request.groups;
    first->leaves.append(part.leaves, static_cast<uint16_t>(groups.size()));
    std::move(part.request.groups.begin(), part.request.groups.end(), std::back_inserter(groups));
  }
  const auto takes_norms = [](const Part& part) { return part.request.norms != nullptr; };
  if (std::any_of(merged.parts.begin(), merged.parts.end(), takes_norms)) {
    merged.shared_norms.assign(merged.parts.size(), mx::array(0.0f));
  }
  for (size_t i = 0; i < merged.shared_norms.size(); ++i) {
    mx::array*& norms = merged.parts[i].request.norms;
    norms = norms ? &merged.shared_norms[i] : nullptr;
  }
  return merged;
}

void MergedParts::give_norms() const {
  for (size_t i = 0; i < norms.size(); ++i) {
    const auto& [wanted, first, groups] = norms[i];
    const Part& part = parts[places[i]];
    if (wanted && part.leaves.size() > 0) {
      const mx::array& all = shared_norms[places[i]];
      *wanted = groups == all.shape(0)
                    ? all
                    : mx::slice(all, {first, 0}, {first + groups, 2}, part.request.stream);
    }
  }
}

// A merged part has the leaves of each kind in the order of its parts.
std::vector<std::vector<mx::array>> successors_of_parts(std::vector<Part> parts) {
  std::vector<std::vector<size_t>> counts;
  for (const Part& part : parts) {
    counts.push_back(counts_of(part.leaves));
  }
  const MergedParts shared = merged(std::move(parts));
  const auto& [all, places, norms, shared_norms] = shared;
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
  shared.give_norms();
  return results;
}

} // namespace mlx_opt
