#include "mlx_opt/graph/stages.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <unordered_map>
#include <utility>

#include "mlx/primitives.h"

namespace mlx_opt {
namespace {

constexpr size_t most_stages = 16;

std::atomic<size_t> least_bytes{default_stage_bytes};

// The longest way from an array that is evaluated, or an input, to the arrays asked for. In a
// backward pass it grows from the last layer to the first.
class Depths {
 public:
  int operator()(const mx::array& x) {
    std::vector<const mx::array*> pending{&x};
    while (!pending.empty()) {
      const mx::array& next = *pending.back();
      int depth = 0;
      bool is_known = true;
      for (const mx::array& input : inputs_of(next)) {
        const auto found = depths_.find(input.id());
        if (found == depths_.end()) {
          pending.push_back(&input);
          is_known = false;
        } else {
          depth = std::max(depth, found->second + 1);
        }
      }
      if (is_known) {
        depths_[next.id()] = depth;
        pending.pop_back();
      }
    }
    return depths_.at(x.id());
  }

 private:
  static const std::vector<mx::array>& inputs_of(const mx::array& x) {
    static const std::vector<mx::array> none;
    const bool is_lazy = x.status() == mx::array::Status::unscheduled && x.has_primitive();
    return is_lazy ? x.inputs() : none;
  }

  std::unordered_map<std::uintptr_t, int> depths_;
};

const mx::array& gradient_of(const Leaves::Kind& kind, size_t index) {
  return *kind.arrays[(index + 1) * kind.operands - 1];
}

class After : public mx::UnaryPrimitive {
 public:
  using mx::UnaryPrimitive::UnaryPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override {
    output.copy_shared_buffer(inputs[0]);
  }

  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override {
    eval_cpu(inputs, output);
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override {
    return {{inputs[0]}, {axes[0]}};
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

  const char* name() const override {
    return "mlx_opt::After";
  }
};

} // namespace

mx::array after(const mx::array& x, const mx::array& before, mx::Stream stream) {
  return mx::array(x.shape(), x.dtype(), std::make_shared<After>(stream), {x, before});
}

size_t stage_bytes() {
  return least_bytes.load(std::memory_order_relaxed);
}

void set_stage_bytes(size_t bytes) {
  least_bytes.store(bytes, std::memory_order_relaxed);
}

Stages stages_of(const Leaves& leaves) {
  size_t lazy = 0;
  for (const Leaves::Kind& kind : leaves.kinds()) {
    for (size_t i = 0; i < kind.leaves.size(); ++i) {
      const mx::array& gradient = gradient_of(kind, i);
      lazy += gradient.status() == mx::array::Status::unscheduled ? gradient.nbytes() : 0;
    }
  }
  const size_t bytes = std::max(stage_bytes(), lazy / most_stages);
  if (lazy < 2 * bytes) {
    return {};
  }
  Depths depth_of;
  std::vector<std::pair<int, LeafPlace>> order;
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const Leaves::Kind& all = leaves.kinds()[kind];
    for (size_t i = 0; i < all.leaves.size(); ++i) {
      order.emplace_back(depth_of(gradient_of(all, i)), LeafPlace{kind, i});
    }
  }
  std::sort(order.begin(), order.end());
  Stages stages;
  size_t filled = bytes;
  for (const auto& [_, place] : order) {
    if (filled >= bytes) {
      stages.emplace_back();
      filled = 0;
    }
    stages.back().push_back(place);
    filled += gradient_of(leaves.kinds()[place.kind], place.index).nbytes();
  }
  return stages;
}

} // namespace mlx_opt
