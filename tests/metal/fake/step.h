// What the tests of steps behind the fake have in common.
#pragma once

#include <optional>

#include "mlx_opt/ops.h"
#include "tensors.h"

using namespace mlx_opt;

struct Scalars {
  mx::array learning_rate = mx::array(0.01f);
  mx::array step = mx::array(3, mx::uint64);
  std::optional<GradientScale> scale = std::nullopt;
};

// Does what MLX does on a GPU: evaluates the graph of a step, whose results these are.
inline void evaluate(std::vector<mx::array>& results) {
  std::vector<mx::array> token{results[0].inputs()[0]};
  token[0].primitive().eval_gpu(token[0].inputs(), token);
  for (auto& result : results) {
    std::vector<mx::array> outputs{result};
    result.primitive().eval_gpu(result.inputs(), outputs);
    result.set_status(mx::array::Status::available);
    result.detach();
  }
}
