#include "mlx_opt/api/run_step.h"

#include <stdexcept>
#include <string_view>

#include "mlx/ops.h"
#include "mlx/version.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/eager/in_place.h"
#include "mlx_opt/eager/merge.h"
#include "mlx_opt/eager/pacing.h"
#include "mlx_opt/graph/sums.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/types/text.h"
#include "mlx_opt/version.h"

namespace mlx_opt {
namespace {

Leaves collect(const Program& program, const std::vector<Leaf>& leaves) {
  Leaves collected(program);
  for (const Leaf& leaf : leaves) {
    const size_t kind = program.kind_of(*leaf.parameter);
    auto& arrays = collected.add(kind, leaf.group, leaf.rounding_key).arrays;
    arrays.push_back(leaf.parameter);
    const Slots& slots = program.state_slots(*leaf.parameter);
    for (size_t k = 0; k < slots.size(); ++k) {
      if (!slots[k]->idle) {
        arrays.push_back(leaf.state + k);
      }
    }
    arrays.push_back(leaf.gradient);
  }
  return collected;
}

bool fits(const mx::array& x, const mx::Shape& shape) {
  return x.shape() == shape && is_storage(x.dtype());
}

// Names are put together only for errors.
void check_leaf(const Program& program, const Name& name, size_t i, const Leaf& leaf) {
  const mx::Shape& shape = leaf.parameter->shape();
  if (!fits(*leaf.parameter, shape) || !fits(*leaf.gradient, shape)) {
    check_operand(name(i), "parameter", *leaf.parameter, shape);
    check_operand(name(i), "gradient", *leaf.gradient, shape);
  }
  const Slots& slots = program.state_slots(*leaf.parameter);
  for (size_t k = 0; k < slots.size(); ++k) {
    const mx::Shape expected = slot_shape(*slots[k], shape);
    const mx::array& state = leaf.state[k];
    const bool is_right =
        has_one_dtype(*slots[k]) ? state.shape() == expected : fits(state, expected);
    if (!is_right) {
      const std::string what = std::string("state ") + slots[k]->name;
      check_operand(name(i), what, state, expected, "expected");
    }
  }
}

// Replaces the parameters and slots by their successors.
void replace(const Leaves& leaves, std::vector<mx::array> successors) {
  auto next = successors.begin();
  for (const Leaves::Kind& kind : leaves.kinds()) {
    for (size_t i = 0; i < kind.arrays.size(); ++i) {
      if ((i + 1) % kind.operands != 0) {
        *kind.arrays[i] = std::move(*next++);
      }
    }
  }
}

void check_differentiation(const Leaves& leaves) {
  if (traced_for_gradient(leaves.operands())) {
    reject("a step cannot be differentiated");
  }
}

// The scale of gradients of whose negative a step is made.
GradientScale negative(const std::optional<GradientScale>& scale, mx::Stream stream) {
  if (!scale) {
    return {mx::array(-1.0f)};
  }
  return {mx::negative(scale->value, stream), scale->skip_nonfinite, scale->max_value};
}

} // namespace

void check_mlx() {
  if (std::string_view(mx::version()) != MLX_OPT_MLX_VERSION) {
    throw std::runtime_error(
        std::string("mlx_opt " MLX_OPT_VERSION " is built for MLX " MLX_OPT_MLX_VERSION
                    ", but MLX ") +
        mx::version() + " is running: install mlx==" MLX_OPT_MLX_VERSION);
  }
}

bool has_one_dtype(const SlotInfo& slot) {
  return slot.format == Format::int8 || slot.format == Format::bits16 ||
         slot.extent == Extent::blocks;
}

void check_operand(
    const std::string& name,
    const std::string& what,
    const mx::array& x,
    const mx::Shape& shape,
    const char* of) {
  if (x.shape() != shape) {
    reject(name + ": " + what + " " + shape_text(x.shape()) + ", " + of + " " + shape_text(shape));
  }
  if (!is_storage(x.dtype())) {
    reject(
        name + ": " + what + " must be float32, float16 or bfloat16, got " + dtype_text(x.dtype()));
  }
}

void check_leaves(
    const Program& program,
    const Name& name,
    const std::vector<Leaf>& leaves,
    mx::StreamOrDevice s) {
  check_mlx();
  if (!available(mx::to_stream(s).device)) {
    throw std::runtime_error("mlx_opt: this build has no backend for the device in use");
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    check_leaf(program, name, i, leaves[i]);
  }
}

std::vector<std::vector<mx::array>> sums_of(
    const ProgramLeaves& leaves, const std::optional<GradientScale>& scale, mx::StreamOrDevice s) {
  const Leaves collected = collect(*leaves.program, leaves.leaves);
  check_differentiation(collected);
  return sums_of({leaves.program, leaves.groups, scale, mx::to_stream(s)}, collected);
}

void run_step(
    const std::vector<ProgramLeaves>& programs,
    const std::optional<GradientScale>& scale,
    const std::vector<mx::array*>& counters,
    mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  std::vector<Part> parts;
  for (const auto& [program, groups, leaves, maximize] : programs) {
    const auto own = maximize ? std::optional(negative(scale, stream)) : scale;
    parts.push_back({{program, groups, own, stream}, collect(*program, leaves)});
  }
  throttle(stream);
  const auto run = [&] { return run_in_place(parts, counters, stream); };
  if (run() || (release_lazy_result(stream) && run())) {
    return;
  }
  for (const Part& part : parts) {
    check_differentiation(part.leaves);
  }
  auto results = successors_of_parts(parts);
  for (size_t p = 0; p < parts.size(); ++p) {
    replace(parts[p].leaves, std::move(results[p]));
  }
}

} // namespace mlx_opt
