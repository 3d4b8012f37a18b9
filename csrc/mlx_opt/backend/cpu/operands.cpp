#include "mlx_opt/backend/cpu/operands.h"

#include "mlx_opt/types/layout.h"

namespace mlx_opt::cpu {

struct Operands::Owned {
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  Layout view;
};

// Null if the array has one element: its dimensions are all of size 1.
const Layout* Operands::layout_of(const mx::array& x) {
  auto layout = std::make_shared<Owned>();
  auto& [shape, strides, view] = *layout;
  for (const Dimension& dimension : merged_dimensions(x)) {
    shape.push_back(dimension.size);
    strides.push_back(dimension.stride);
  }
  view = {shape.data(), strides.data(), static_cast<int>(shape.size())};
  layouts_.push_back(std::move(layout));
  return view.ndim ? &view : nullptr;
}

} // namespace mlx_opt::cpu
