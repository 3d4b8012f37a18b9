// Parts of one rule become one part with a group each, so that they share launches.
#pragma once

#include <vector>

#include "mlx_opt/eager/part.h"

namespace mlx_opt {

std::vector<Part> merged(std::vector<Part> parts);

} // namespace mlx_opt
