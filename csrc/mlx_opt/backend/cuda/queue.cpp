#include "mlx_opt/backend/cuda/queue.h"

#include <algorithm>

#include "mlx_opt/backend/cuda/in_flight.h"
#include "mlx_opt/backend/cuda/uniforms.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::cuda {
namespace {

// The bytes of a layout of `inputs` operands, which is the beginning of the widest.
size_t layout_bytes(int inputs) {
  return sizeof(AnyLayout) - (max_operands - inputs) * sizeof(AnyLayout::strides[0]);
}

UniformsShape uniforms_shape(const StepSpec& spec) {
  const RuleInfo& rule = info(spec.rule);
  return {rule.name, rule.hypers + spec.has_ema, rule.scalars, spec.has_ema};
}

} // namespace

StepQueue::StepQueue(const StepSpec& spec, mx::Stream stream)
    : stream_(stream),
      encoder_(mx::cu::get_command_encoder(stream)),
      group_uniforms_(new_group_uniforms(uniforms_shape(spec), spec, stream)) {}

void StepQueue::begin(const StepSpec& spec, const ArrayRefs& inputs) {
  wait_for_last_but_one(stream_);
  const auto* scalars = &inputs[spec.operand_count()];
  launch_prepare(encoder_, uniforms_shape(spec), spec, scalars, group_uniforms_);
}

void StepQueue::read_operands(const StepSpec& spec, const ArrayRefs& inputs) {
  for (size_t i = 0; i < spec.operand_count(); ++i) {
    encoder_.set_input_array(*inputs[i]);
  }
}

void StepQueue::launch(Shares& shares) {
  for (Share& share : shares.all()) {
    for (size_t begin = 0, end = 0; begin < share.records.count(); begin = end) {
      end = std::min(begin + share.capacity(), share.records.count());
      launch(share, begin, end);
    }
  }
}

void StepQueue::launch(Share& share, size_t begin, size_t end) {
  Records& records = share.records;
  const Walk walk = share.kernel.walk;
  if (walk == Walk::strided) {
    Parameter parameter;
    parameter.add(address<float>(group_uniforms_));
    parameter.add(records.at(begin), records.bytes());
    parameter.add(&share.layouts[begin], layout_bytes(share.kernel.inputs()));
    launch_next(share.function, chunks_of(walk, records[begin]), threads, parameter.data());
    return;
  }
  unsigned chunks = 0;
  for (size_t i = begin; i < end; ++i) {
    Extent extent = records[i];
    extent.first_chunk = chunks;
    records.set(i, extent);
    chunks += chunks_of(walk, extent);
  }
  launch(share.function, records, begin, end, chunks, threads);
}

void StepQueue::launch(
    CUfunction function,
    const Records& records,
    size_t begin,
    size_t end,
    unsigned blocks,
    int threads) {
  Parameter parameter;
  parameter.add(address<float>(group_uniforms_));
  parameter.add(static_cast<int64_t>(end - begin));
  parameter.add(records.at(begin), (end - begin) * records.bytes());
  launch_next(function, blocks, threads, parameter.data());
}

// Runs after the previous launch, because each declares that it writes the uniforms. Without this
// the graph has branches, and once the driver has run such a graph it answers queries about events
// four times slower.
void StepQueue::launch_next(CUfunction function, unsigned blocks, int threads, void* parameter) {
  encoder_.set_output_array(group_uniforms_);
  cuda::launch(encoder_, function, blocks, threads, parameter);
}

void StepQueue::end(std::shared_ptr<void> keep_alive) {
  encoder_.add_temporary(group_uniforms_);
  encoder_.add_completed_handler([keep_alive = std::move(keep_alive)] {});
  // Commits now, so that the GPU works while the host walks over the results.
  encoder_.commit();
  note_step(stream_, encoder_);
}

} // namespace mlx_opt::cuda
