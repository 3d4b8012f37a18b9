// The step behind the C++ interface.
#pragma once

#include <functional>

#include "mlx_opt/definition.h"
#include "mlx_opt/functions.h"

namespace mlx_opt {

/// What `update` does; `name(i)` is what errors call parameter i.
void apply(
    const Definition& definition,
    const std::function<std::string(size_t)>& name,
    Arrays& parameters,
    Arrays gradients,
    Arrays& state,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s);

/// Throws std::invalid_argument unless `x`, the `what` of parameter `name`, has the parameter's
/// shape and a storage dtype.
void check_operand(
    const std::string& name, const std::string& what, const mx::array& x, const mx::Shape& shape);

/// As MLX writes it: float32.
const char* dtype_text(mx::Dtype dtype);

/// Throws std::runtime_error if the running MLX is not the one that this library was built for.
void check_mlx();

} // namespace mlx_opt
