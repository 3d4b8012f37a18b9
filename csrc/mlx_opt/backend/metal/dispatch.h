// The tensors of a step as its dispatches take them.
#pragma once

#include <functional>
#include <vector>

#include "mlx/backend/metal/device.h"
#include "mlx_opt/backend/metal/leaf.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// One kernel over one tensor, or over several where they are flat.
struct Dispatch {
  UpdateKernel kernel;
  std::vector<const Leaf*> leaves{};
};

/// The tensors of a step, as StepSpec has its inputs; without those that are empty.
std::vector<Leaf> leaves_of(
    const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes);

/// `max_tensors`: how many tensors of such operands a dispatch has slots for; small ones share one.
std::vector<Dispatch> dispatches_over(
    const std::vector<Leaf>& leaves, const std::function<int(const Operands&)>& max_tensors);

/// Hands over the table of flat tensors, whose unused places no threadgroup reaches; returns its
/// chunks.
uint64_t set_pack(mx::metal::CommandEncoder& encoder, const Dispatch& dispatch);

/// Hands over what the walk of the dispatch's kernel takes; returns its threadgroups.
uint64_t set_arguments(mx::metal::CommandEncoder& encoder, const Dispatch& dispatch);

/// Where a kernel's operands of a tensor lie.
struct Places {
  std::vector<Place> in;
  std::vector<Place> out;
};

/// Hands over the operands of a kernel's tensors, from a slot on.
void set_operands(
    mx::metal::CommandEncoder& encoder,
    const UpdateKernel& kernel,
    const Dispatch& dispatch,
    const std::function<Places(const Leaf&)>& places_of,
    int slot);

} // namespace mlx_opt::metal
