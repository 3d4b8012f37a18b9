/// Fused, in-place optimizers for MLX.
#pragma once

#include "mlx_opt/clipping.h"
#include "mlx_opt/functions.h"
#include "mlx_opt/hyperparameters.h"
#include "mlx_opt/optimizer.h"
#include "mlx_opt/version.h"
