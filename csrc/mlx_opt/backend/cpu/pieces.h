// The ranges of elements over which a step takes partial sums.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/rules/list.h"
#include "mlx_opt/step/plan.h"

namespace mlx_opt::cpu {

using Sums = std::array<double, max_sums>;

/// Elements [begin, end) of a tensor.
struct Piece {
  size_t tensor;
  int64_t begin, end;
  Sums sums;
};

/// The pieces into which a plan cuts the tensors, in the order of its chunks.
class Pieces {
 public:
  explicit Pieces(const Plan& plan) {
    for (int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
      starts_.push_back(pieces_.size());
      plan.visit(chunk, [&](size_t tensor, int64_t begin, int64_t end) {
        pieces_.push_back({tensor, begin, end, {}});
      });
    }
    starts_.push_back(pieces_.size());
  }

  /// Calls `function(piece)` for all pieces, one chunk at a time on each thread.
  template <typename Function>
  void for_each(Function&& function) {
    parallel_for(starts_.size() - 1, [&](int64_t chunk) {
      for (size_t i = starts_[chunk]; i < starts_[chunk + 1]; ++i) {
        function(pieces_[i]);
      }
    });
  }

  /// The sums of each tensor over its pieces.
  std::vector<Sums> sums(size_t tensors) const {
    std::vector<Sums> totals(tensors, Sums{});
    for (const Piece& piece : pieces_) {
      for (int k = 0; k < max_sums; ++k) {
        totals[piece.tensor][k] += piece.sums[k];
      }
    }
    return totals;
  }

 private:
  std::vector<Piece> pieces_;
  std::vector<size_t> starts_; // of each chunk, and the end
};

} // namespace mlx_opt::cpu
