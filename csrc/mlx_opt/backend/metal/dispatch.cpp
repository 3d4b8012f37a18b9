#include "mlx_opt/backend/metal/dispatch.h"
#include "mlx_opt/rules/registry.h"

#include <algorithm>
#include <limits>

namespace mlx_opt::metal {
namespace {

// A larger tensor has a dispatch of its own, which costs less than running the tensor.
constexpr uint64_t max_packed_chunks = 16;

bool may_pack(const Leaf& leaf) {
  return leaf.kernel.walk == Walk::flat && leaf.threadgroups <= max_packed_chunks;
}

// The dispatch that a tensor joins, which has at most `max_tensors`.
Dispatch& dispatch_for(const Leaf& leaf, std::vector<Dispatch>& dispatches, size_t max_tensors) {
  if (may_pack(leaf)) {
    // Searches from the back, because the earlier ones are full.
    const auto open = std::find_if(dispatches.rbegin(), dispatches.rend(), [&](const Dispatch& d) {
      return d.kernel == leaf.kernel && d.leaves.size() < max_tensors && may_pack(*d.leaves[0]);
    });
    if (open != dispatches.rend()) {
      return *open;
    }
  }
  return dispatches.emplace_back(Dispatch{leaf.kernel});
}

void set_tensor(
    mx::metal::CommandEncoder& encoder, const Operands& operands, const Places& places, int slot) {
  for (size_t k = 0; k < places.in.size(); ++k) {
    mx::array x = places.in[k].array();
    if (operands.overwrites(static_cast<int>(k))) {
      encoder.set_output_array(x, slot++);
    } else {
      encoder.set_input_array(x, slot++);
    }
  }
  for (size_t k = 0; k < places.out.size(); ++k) {
    if (operands.written[k] == apart) {
      mx::array x = places.out[k].array();
      encoder.set_output_array(x, slot++);
    }
  }
}

} // namespace

std::vector<Leaf> leaves_of(
    const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes) {
  std::vector<Leaf> leaves;
  size_t tensor = 0, input = 0, output = 0;
  for (const auto& [tensors, operands, masters, scales] : spec.runs) {
    UpdateKernel kernel{info(spec.rule).name, Walk::flat, spec.scaling, 1, {}, masters};
    kernel.has_ema = spec.has_ema;
    kernel.scales = scales;
    kernel.operands.in.resize(operands);
    kernel.operands.out.resize(operands - 1);
    kernel.operands.written.resize(operands - 1);
    for (const size_t end = tensor + tensors; tensor < end; ++tensor) {
      if (inputs[input]->size() > 0) {
        const auto* results = &dtypes[output];
        kernel.rounds = spec.rounds() && has_bfloat16(results, operands - 1);
        leaves.emplace_back(
            kernel,
            &inputs[input],
            results,
            output,
            spec.group_of(tensor),
            kernel.rounds ? spec.rounding_keys[tensor] : 0);
      }
      input += operands;
      output += operands - 1;
    }
  }
  return leaves;
}

std::vector<Dispatch> dispatches_over(
    const std::vector<Leaf>& leaves, const std::function<int(const Operands&)>& max_tensors) {
  std::vector<Dispatch> dispatches;
  for (const Leaf& leaf : leaves) {
    const auto room = static_cast<size_t>(max_tensors(leaf.kernel.operands));
    dispatch_for(leaf, dispatches, room).leaves.push_back(&leaf);
  }
  for (Dispatch& dispatch : dispatches) {
    if (dispatch.leaves.size() > 1) {
      dispatch.kernel.capacity = max_tensors(dispatch.kernel.operands);
    }
  }
  return dispatches;
}

uint64_t set_pack(mx::metal::CommandEncoder& encoder, const Dispatch& dispatch) {
  std::vector<Tensor> tensors;
  uint64_t chunks = 0;
  for (const Leaf* leaf : dispatch.leaves) {
    const auto first = static_cast<unsigned>(chunks);
    tensors.push_back({leaf->size, first, leaf->group, leaf->vectors, leaf->rounding_key});
    chunks += chunks_of(leaf->size);
  }
  tensors.resize(dispatch.kernel.capacity, {0, std::numeric_limits<unsigned>::max(), 0, 0, 0});
  encoder.set_vector_bytes(tensors, arguments_slot);
  return chunks;
}

uint64_t set_arguments(mx::metal::CommandEncoder& encoder, const Dispatch& dispatch) {
  if (dispatch.kernel.walk == Walk::flat) {
    return set_pack(encoder, dispatch);
  }
  encoder.set_vector_bytes(dispatch.leaves[0]->arguments, arguments_slot);
  return dispatch.leaves[0]->threadgroups;
}

// Every slot of a kernel must be bound: unused ones to the last tensor's operands.
void set_operands(
    mx::metal::CommandEncoder& encoder,
    const UpdateKernel& kernel,
    const Dispatch& dispatch,
    const std::function<Places(const Leaf&)>& places_of,
    int slot) {
  const size_t last = dispatch.leaves.size() - 1;
  for (int t = 0; t < kernel.capacity; ++t) {
    const Places places = places_of(*dispatch.leaves[std::min<size_t>(t, last)]);
    set_tensor(encoder, kernel.operands, places, slot);
    slot += kernel.operands.slots();
  }
}

} // namespace mlx_opt::metal
