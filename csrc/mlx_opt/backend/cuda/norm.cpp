#include "mlx_opt/backend/cuda/norm.h"

#include <algorithm>
#include <map>

#include "mlx_opt/backend/cuda/memory.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/norm_tables.h"
#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/cuda/records.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mx::cu;

using Dense = Tensor<1, 1>;
using Scattered = Strided<1, 1>;

int64_t chunks_of(const Extent& tensor) {
  return (static_cast<int64_t>(tensor.size) + norm_chunk - 1) / norm_chunk;
}

// The tensors, sorted by layout. `out[0]` of each is the address of its first sum.
struct Operands {
  std::map<Storage, std::vector<Dense>> dense; // without gaps, in any order
  std::vector<std::pair<Storage, Scattered>> strided;
  int64_t chunks = 0;

  void add(const mx::array& x);
  void place(double* sums);
};

void Operands::add(const mx::array& x) {
  if (x.size() == 0) {
    return;
  }
  Dense tensor{};
  tensor.in[0] = address<void>(x);
  tensor.size = x.size();
  chunks += chunks_of(tensor);
  if (x.flags().contiguous && x.data_size() == x.size()) {
    dense[storage_of(x.dtype())].push_back(tensor);
  } else {
    strided.push_back({storage_of(x.dtype()), {nullptr, tensor, layout_of<Layout<1>>(x)}});
  }
}

void Operands::place(double* sums) {
  const auto take = [&](Dense& tensor) {
    tensor.out[0] = sums;
    sums += chunks_of(tensor);
  };
  for (auto& [storage, tensors] : dense) {
    std::for_each(tensors.begin(), tensors.end(), take);
  }
  for (auto& [storage, args] : strided) {
    take(args.tensor);
  }
}

// Each launch declares that it writes all sums, so that they run one after another without
// branches, as a step's do.
void launch_dense(
    cu::CommandEncoder& encoder,
    Storage storage,
    std::vector<Dense>& tensors,
    const mx::array& sums) {
  const int capacity = table_capacity(sizeof(Dense), tensors.size(), encoder.device());
  const auto kernel = function(SquaresKernel{storage, capacity}, encoder.device());
  for (size_t begin = 0; begin < tensors.size(); begin += capacity) {
    const size_t end = std::min(begin + capacity, tensors.size());
    unsigned chunks = 0;
    for (size_t i = begin; i < end; ++i) {
      tensors[i].first_chunk = chunks;
      chunks += static_cast<unsigned>(chunks_of(tensors[i]));
    }
    Parameter parameter;
    parameter.add(static_cast<const float*>(nullptr)); // no uniforms
    parameter.add(static_cast<int64_t>(end - begin));
    parameter.add(&tensors[begin], (end - begin) * sizeof(Dense));
    encoder.set_output_array(sums);
    launch(encoder, kernel, chunks, threads, parameter.data());
  }
}

void launch_strided(
    cu::CommandEncoder& encoder, Storage storage, Scattered args, const mx::array& sums) {
  const auto kernel = function(SquaresKernel{storage, 0}, encoder.device());
  encoder.set_output_array(sums);
  launch(encoder, kernel, static_cast<unsigned>(chunks_of(args.tensor)), threads, &args);
}

} // namespace

void enqueue_norm(const std::vector<mx::array>& arrays, mx::array& output, mx::Stream stream) {
  auto& encoder = cu::get_command_encoder(stream);
  Operands operands;
  for (const mx::array& x : arrays) {
    operands.add(x);
    encoder.set_input_array(x);
  }
  const int64_t bytes =
      std::max<int64_t>(operands.chunks, 1) * static_cast<int64_t>(sizeof(double));
  mx::array sums(device_memory(bytes, stream), {static_cast<int>(bytes)}, mx::uint8);
  operands.place(address<double>(sums));
  for (auto& [storage, tensors] : operands.dense) {
    launch_dense(encoder, storage, tensors, sums);
  }
  for (const auto& [storage, args] : operands.strided) {
    launch_strided(encoder, storage, args, sums);
  }
  set_data(output, device_memory(output.nbytes(), stream));
  Sums total{address<double>(sums), operands.chunks, address<float>(output)};
  encoder.set_input_array(sums);
  encoder.set_output_array(output);
  launch(encoder, function(NormKernel{}, encoder.device()), 1, norm_threads, &total);
  encoder.add_temporary(sums);
}

void enqueue_clip(
    const std::vector<mx::array>& inputs,
    float max_norm,
    bool skip_nonfinite,
    mx::array& scale,
    mx::Stream stream) {
  auto& encoder = cu::get_command_encoder(stream);
  set_data(scale, device_memory(scale.nbytes(), stream));
  const float* traced_max_norm = inputs.size() > 1 ? address<float>(inputs[1]) : nullptr;
  Clip from{
      address<float>(inputs[0]), traced_max_norm, max_norm, skip_nonfinite, address<float>(scale)};
  for (const mx::array& x : inputs) {
    encoder.set_input_array(x);
  }
  encoder.set_output_array(scale);
  launch(encoder, function(ClipKernel{}, encoder.device()), 1, 1, &from);
  encoder.commit();
}

} // namespace mlx_opt::cuda
