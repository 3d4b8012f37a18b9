// Code that the drivers of all rules share. For one instruction set.
#pragma once

#include "mlx_opt/backend/cpu/kernels/master.h"
#include "mlx_opt/rules/registry.h"

MLX_OPT_RULES_BEGIN
namespace {

// Number of fields of a rule's element: the parameter and its slots. Operand number `fields` is the
// gradient.
template <typename Rule>
constexpr int fields_of = sizeof(typename Rule::Element) / sizeof(float);

template <typename Rule>
void prepare(const float* hypers, float lr, float step, float* scalars) {
  typename Rule::Hypers h;
  __builtin_memcpy(&h, hypers, sizeof h);
  const typename Rule::Scalars s = Rule::prepare(h, lr, step);
  __builtin_memcpy(scalars, &s, sizeof s);
}

inline void copy_unless_shared(const Operand& from, const Operand& to, int64_t begin, int64_t end) {
  if (from.data != to.data) {
    copy(from, to, begin, end);
  }
}

template <typename Rule>
void copy_through(const Tensor& tensor, int64_t begin, int64_t end) {
  constexpr int fields = fields_of<Rule>;
  for (int k = 0; k < fields; ++k) {
    copy_unless_shared(tensor.in[k], tensor.out[k], begin, end);
  }
  const int stages = (tensor.masters != MasterWeights::none) + tensor.has_ema;
  for (int k = fields; k < fields + stages; ++k) {
    copy_unless_shared(tensor.in[k + 1], tensor.out[k], begin, end);
  }
}

// Calls `visit(begin, count, values)` for parts of rows, of at most `block` elements, of a
// transposed gradient, such as a linear layer's. `begin` must be the start of a panel of its rows.
template <typename Visit>
void for_each_row_of_panels(
    const Operand& gradient, int64_t begin, int64_t end, const Visit& visit) {
  alignas(64) float values[panel * block];
  const int64_t columns = gradient.layout->shape[1];
  for (int64_t top = begin / columns; top * columns < end; top += panel) {
    for (int64_t left = 0; left < columns; left += block) {
      const int64_t right = left + block < columns ? left + block : columns;
      load_panel(gradient, top, left, right, values);
      for (int64_t row = top; row < top + panel && row * columns < end; ++row) {
        visit(row * columns + left, right - left, values + (row - top) * block);
      }
    }
  }
}

} // namespace
MLX_OPT_RULES_END
