#include "mlx_opt/graph/tracing.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "mlx/primitives.h"

namespace mlx_opt {

// MLX does not export this test, but vjp and jvp can be recognised: they trace copies of their
// primals, while compile and vmap trace arrays without a primitive.
bool traced_for_gradient(const ArrayRefs& arrays) {
  std::vector<mx::array> stack;
  std::unordered_set<std::uintptr_t> seen;
  auto push = [&](const mx::array& x) {
    if (x.is_tracer() && x.has_primitive() && seen.insert(x.id()).second) {
      stack.push_back(x);
    }
  };
  for (const mx::array* x : arrays) {
    push(*x);
  }
  while (!stack.empty()) {
    const mx::array x = std::move(stack.back());
    stack.pop_back();
    if (std::string_view(x.primitive().name()) == "Copy") {
      return true;
    }
    std::for_each(x.inputs().begin(), x.inputs().end(), push);
  }
  return false;
}

// On a GPU the order of the stream is enough. On the CPU nothing may be pending: MLX may wait for
// queued tasks, and they for Python's lock.
bool is_ready(const mx::array& x, mx::Stream stream) {
  if (x.status() == mx::array::Status::unscheduled || x.is_tracer()) {
    return false;
  }
  const bool in_order =
      stream.device == mx::Device::gpu && x.event().valid() && x.event().stream() == stream;
  return in_order || x.is_available();
}

bool inputs_are_ready(const mx::array& x, int depth, mx::Stream stream) {
  if (is_ready(x, stream)) {
    return true;
  }
  return depth > 0 && !x.is_tracer() && x.has_primitive() &&
         std::all_of(x.inputs().begin(), x.inputs().end(), [&](const mx::array& input) {
           return inputs_are_ready(input, depth - 1, stream);
         });
}

} // namespace mlx_opt
