// Merges parts of the same rule into one part with a group for each, so that they share launches.
#pragma once

#include <vector>

#include "mlx_opt/eager/part.h"

namespace mlx_opt {

std::vector<Part> merged(std::vector<Part> parts);

} // namespace mlx_opt
