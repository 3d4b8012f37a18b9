#include "mlx_opt/backend/cuda/shares.h"

#include <algorithm>

#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/rules/codes.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::cuda {

void for_each_tensor(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::function<void(Position, int, const Extent&)>& visit) {
  Position position{};
  size_t tensor = 0;
  for (const auto& [tensors, operands, masters, scales] : spec.runs) {
    position.masters = masters;
    position.scales = scales;
    if (operands > max_operands) {
      throw std::runtime_error(
          "mlx_opt: a tensor of " + std::string(info(spec.rule).name) + " has " +
          std::to_string(operands) + " operands, and the kernels of CUDA take at most " +
          std::to_string(max_operands));
    }
    for (const size_t end = tensor + tensors; tensor < end; ++tensor) {
      if (const size_t size = inputs[position.input]->size(); size > 0) {
        Extent extent{};
        extent.size = size;
        extent.group = spec.group_of(tensor);
        position.tensor = tensor;
        visit(position, operands, extent);
      }
      position.input += operands;
      position.output += operands - 1;
    }
  }
}

unsigned chunks_of(Walk walk, const Extent& tensor) {
  const auto size = static_cast<int64_t>(tensor.size);
  if (walk != Walk::transposed) {
    return static_cast<unsigned>((size + chunk - 1) / chunk);
  }
  const auto tiles = [](int64_t count) { return (count + tile - 1) / tile; };
  return static_cast<unsigned>(tiles(size / tensor.columns) * tiles(tensor.columns));
}

Share& Shares::add(const UpdateKernel& kernel, size_t tensor, const Extent& extent) {
  auto share =
      std::find_if(all_.begin(), all_.end(), [&](const Share& s) { return s.kernel == kernel; });
  if (share == all_.end()) {
    all_.emplace_back(kernel);
    share = std::prev(all_.end());
  }
  share->records.add(extent);
  share->tensors.push_back(tensor);
  return *share;
}

void Shares::find_functions(const mx::cu::Device& device) {
  for (Share& share : all_) {
    if (share.kernel.walk != Walk::strided) {
      share.kernel.capacity = table_capacity(share.records.bytes(), share.records.count(), device);
    }
    share.function = function(share.kernel, device);
  }
}

Share& add_with_gradient(
    Shares& shares,
    UpdateKernel kernel,
    size_t tensor,
    Extent extent,
    const mx::array* const* operands) {
  const int fields = kernel.in.count() - 1;
  kernel.walk = Walk::flat;
  if (!all_contiguous(operands, fields + 1)) {
    const bool rows = all_contiguous(operands, fields);
    extent.columns = rows ? columns_if_transposed(*operands[fields], tile) : 0;
    // A tile must not cut a block of codes.
    if (kernel.scales > 0 && extent.columns % MLX_OPT_LEVEL::elements_of_block != 0) {
      extent.columns = 0;
    }
    kernel.walk = extent.columns ? Walk::transposed : Walk::strided;
  }
  Share& share = shares.add(kernel, tensor, extent);
  if (kernel.walk == Walk::strided) {
    share.layouts.push_back(common_layout<AnyLayout>(operands, fields + 1));
  }
  return share;
}

} // namespace mlx_opt::cuda
