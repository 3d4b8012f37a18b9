// The tensors of a step, grouped into dispatches.
#pragma once

#include <functional>
#include <vector>

#include "mlx/backend/metal/device.h"
#include "mlx_opt/backend/metal/leaf.h"
#include "mlx_opt/step/spec.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::metal {

namespace mx = mlx::core;

/// One kernel over one tensor, or over several flat ones.
struct Dispatch {
  UpdateKernel kernel;
  std::vector<const Leaf*> leaves{};
};

/// The tensors of a step without the empty ones. `inputs`: those of StepSpec.
std::vector<Leaf> leaves_of(
    const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes);

/// `max_tensors`: for how many tensors of such operands a dispatch has slots. Small tensors share a
/// dispatch.
std::vector<Dispatch> dispatches_over(
    const std::vector<Leaf>& leaves, const std::function<int(const Operands&)>& max_tensors);

/// Binds the table of flat tensors and returns their number of chunks. No threadgroup reaches its
/// unused entries.
uint64_t set_pack(mx::metal::CommandEncoder& encoder, const Dispatch& dispatch);

/// Binds the arguments for the walk of the dispatch's kernel and returns its number of
/// threadgroups.
uint64_t set_arguments(mx::metal::CommandEncoder& encoder, const Dispatch& dispatch);

/// The addresses of a tensor's operands in a kernel.
struct Places {
  std::vector<Place> in;
  std::vector<Place> out;
};

/// Binds the operands of a kernel's tensors, from a slot on.
void set_operands(
    mx::metal::CommandEncoder& encoder,
    const UpdateKernel& kernel,
    const Dispatch& dispatch,
    const std::function<Places(const Leaf&)>& places_of,
    int slot);

} // namespace mlx_opt::metal
