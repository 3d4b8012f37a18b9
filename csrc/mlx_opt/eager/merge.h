// Merges parts of the same rule into one part with a group for each, so that they share launches.
#pragma once

#include <vector>

#include "mlx_opt/eager/part.h"

namespace mlx_opt {

struct MergedParts {
  std::vector<Part> parts;
  std::vector<size_t> places; // of each part among those
};

MergedParts merged(std::vector<Part> parts);

/// The new parameters and slots of each part's leaves, lazy, as `successors` gives them.
MLX_OPT_API std::vector<std::vector<mx::array>> successors_of_parts(std::vector<Part> parts);

} // namespace mlx_opt
