/// Fused, in-place optimizers for MLX.
#pragma once

#include "mlx_opt/api/functions.h"
#include "mlx_opt/api/optimizer.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"
#include "mlx_opt/types/clipping.h"
#include "mlx_opt/types/group.h"
#include "mlx_opt/types/hyperparameters.h"
#include "mlx_opt/types/options.h"
#include "mlx_opt/version.h"
