// Merges parts of the same rule into one part with a group for each, so that they share launches.
#pragma once

#include <vector>

#include "mlx_opt/eager/part.h"

namespace mlx_opt {

struct MergedParts {
  /// Where the norms of a part's groups are wanted, and its place among the merged groups.
  struct Norms {
    mx::array* wanted; // null if they are not
    int first_group, groups;
  };

  std::vector<Part> parts;
  std::vector<size_t> places;          // of each part among those
  std::vector<Norms> norms;            // of each part
  std::vector<mx::array> shared_norms; // of the merged parts, which point here

  /// Gives each part its share of the norms that the merged parts have.
  void give_norms() const;
};

MergedParts merged(std::vector<Part> parts);

/// The new parameters and slots of each part's leaves, lazy, as `successors` gives them.
MLX_OPT_API std::vector<std::vector<mx::array>> successors_of_parts(std::vector<Part> parts);

} // namespace mlx_opt
