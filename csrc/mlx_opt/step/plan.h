// Cuts a step into chunks of work. Depends on no device and no MLX type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace mlx_opt {

/// Lays the tensors of a step end to end and cuts them into chunks of about equal length, so that
/// both one long tensor and a thousand short ones give every core its share.
class Plan {
 public:
  /// Tensors are cut at multiples of this many elements: at least a cache line.
  static constexpr int64_t alignment = 64;

  /// A tensor of `size` elements that may be cut at multiples of `grain`.
  struct Extent {
    int64_t size;
    int64_t grain = alignment;
  };

  /// `chunk`: elements of a chunk.
  Plan(std::vector<Extent> extents, int64_t chunk) : chunk_(chunk), extents_(std::move(extents)) {
    starts_.reserve(extents_.size() + 1);
    starts_.push_back(0);
    for (const Extent& extent : extents_) {
      starts_.push_back(starts_.back() + extent.size);
    }
  }

  int64_t chunks() const {
    return (starts_.back() + chunk_ - 1) / chunk_;
  }

  /// Calls `visit(tensor, begin, end)` for each range of elements in chunk `index`. Over all chunks
  /// every element is visited once.
  template <typename Visit>
  void visit(int64_t index, Visit&& visit) const {
    const int64_t first = index * chunk_;
    const int64_t last = first + chunk_;
    auto at = std::upper_bound(starts_.begin(), starts_.end(), first) - 1;
    for (; at + 1 != starts_.end() && *at < last; ++at) {
      const auto tensor = at - starts_.begin();
      const int64_t begin = cut(extents_[tensor], first - *at);
      const int64_t end = cut(extents_[tensor], last - *at);
      if (begin < end) {
        visit(tensor, begin, end);
      }
    }
  }

 private:
  // The first offset, from `offset` on, at which the tensor may be cut.
  static int64_t cut(const Extent& extent, int64_t offset) {
    if (offset <= 0) {
      return 0;
    }
    return offset >= extent.size
               ? extent.size
               : std::min((offset + extent.grain - 1) / extent.grain * extent.grain, extent.size);
  }

  int64_t chunk_;
  std::vector<Extent> extents_;
  std::vector<int64_t> starts_; // one more than extents: the last is the total
};

} // namespace mlx_opt
