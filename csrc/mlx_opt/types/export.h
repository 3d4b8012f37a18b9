#pragma once

/// Marks what libmlx_opt exports.
#define MLX_OPT_API __attribute__((visibility("default")))
