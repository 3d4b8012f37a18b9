// Finds the backend of the running MLX's GPU.
#pragma once

#include <string>

#include "mlx/device.h"
#include "mlx_opt/backend/backend.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt::gpu {

/// The backend, or null and the reason why there is none.
struct Found {
  const Backend* backend;
  std::string reason;
};

/// Looks for the backend on the first call.
MLX_OPT_API const Found& find_backend();

} // namespace mlx_opt::gpu

namespace mlx_opt {

/// True if this build can run the rules on `device`.
MLX_OPT_API bool available(mx::Device device);

} // namespace mlx_opt
