#include "mlx_opt/backend/cpu/operands.h"

#include "mlx_opt/types/layout.h"

namespace mlx_opt::cpu {

struct Operands::Owned {
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  Layout view;
};

namespace {

Operand contiguous(const mx::array& x) {
  void* data = const_cast<void*>(static_cast<const void*>(x.data<char>()));
  return {data, storage_of(x.dtype()), nullptr};
}

} // namespace

Operand Operands::of(const mx::array& x) {
  Operand operand = contiguous(x);
  if (x.flags().row_contiguous) {
    return operand;
  }
  auto layout = std::make_shared<Owned>();
  auto& [shape, strides, view] = *layout;
  for (const Dimension& dimension : merged_dimensions(x)) {
    shape.push_back(dimension.size);
    strides.push_back(dimension.stride);
  }
  view = {shape.data(), strides.data(), static_cast<int>(shape.size())};
  operand.layout = view.ndim ? &view : nullptr;
  layouts_.push_back(std::move(layout));
  return operand;
}

Operand Operands::in_any_order(const mx::array& x) {
  return x.flags().contiguous && x.data_size() == x.size() ? contiguous(x) : of(x);
}

} // namespace mlx_opt::cpu
