#include "mlx_opt/update.h"

#include <deque>
#include <stdexcept>

#include "mlx_opt/backend/cpu/step.h"
#include "mlx_opt/backend/gpu.h"
#include "mlx_opt/donation.h"

namespace mlx_opt {

std::vector<mx::allocator::Buffer> Handoff::written() const {
  std::vector<mx::allocator::Buffer> written;
  written.reserve(buffers.size());
  for (const auto& data : buffers) {
    written.push_back(data.buffer());
  }
  return written;
}

Handoff& handoff(const mx::array& token) {
  auto buffer = token.buffer();
  return *static_cast<Handoff*>(buffer.ptr());
}

const Handoff& hand_over(Handoff placed, mx::array& token) {
  auto* held = new Handoff(std::move(placed));
  token.set_data(mx::array::Data(mx::allocator::Buffer(held), [](mx::allocator::Buffer buffer) {
    delete static_cast<Handoff*>(buffer.ptr());
  }));
  return *held;
}

size_t TokenStep::input_of(size_t position) const {
  size_t input = 0;
  for (const auto& [tensors, operands] : runs_) {
    const size_t fields = operands - 1;
    if (position < tensors * fields) {
      return input + position / fields * operands + position % fields;
    }
    position -= tensors * fields;
    input += tensors * operands;
  }
  throw std::logic_error("mlx_opt: a step has no such output");
}

std::shared_ptr<TokenStep> Update::again() const {
  return std::make_shared<Update>(const_cast<Update*>(this)->stream(), schedule_, dtypes());
}

// Where the operands lie must be read before place_outputs moves their buffers, so the step is
// queued with outputs that are placed between the two.
void Update::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  release_held_buffers(stream(), inputs, runs());
  cpu::Step step(schedule_, inputs, dtypes());
  Handoff placed = place_outputs(
      inputs, runs(), dtypes(), [](size_t bytes) { return mx::allocator::malloc(bytes); });
  const Handoff& held = hand_over(std::move(placed), outputs[0]);
  step.enqueue(stream(), held.written(), outputs[0].data_shared_ptr());
}

void Update::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto& [backend, reason] = gpu::find_backend();
  if (!backend) {
    throw std::runtime_error("mlx_opt: no backend for the GPU: " + reason);
  }
  auto step = backend->prepare(schedule_, inputs, dtypes(), stream());
  Handoff placed = place_outputs(
      inputs, runs(), dtypes(), [&](size_t bytes) { return backend->allocate(bytes, stream()); });
  const Handoff& held = hand_over(std::move(placed), outputs[0]);
  step->enqueue(held.written(), outputs[0].data_shared_ptr());
}

void Take::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  outputs[0].set_data(std::move(handoff(inputs[0]).buffers[position_]));
}

void Take::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  eval_cpu(inputs, outputs);
}

std::vector<mx::Shape> Take::output_shapes(const std::vector<mx::array>& inputs) {
  const auto& step = static_cast<const TokenStep&>(inputs[0].primitive());
  return {inputs[0].inputs()[step.input_of(position_)].shape()};
}

mx::array token_of(std::shared_ptr<TokenStep> step, std::vector<mx::array> inputs) {
  return mx::array(mx::Shape{}, mx::uint8, std::move(step), std::move(inputs));
}

std::vector<mx::array> take_all(const mx::array& token) {
  const auto& step = static_cast<const TokenStep&>(token.primitive());
  const auto stream = token.primitive().stream();
  const auto& inputs = token.inputs();
  // The Takes lie together, and each keeps all alive: few allocations in place of many.
  auto takes = std::make_shared<std::deque<Take>>();
  std::vector<mx::array> outputs;
  outputs.reserve(step.dtypes().size());
  for (size_t i = 0; i < step.dtypes().size(); ++i) {
    takes->emplace_back(stream, i);
    outputs.emplace_back(
        inputs[step.input_of(i)].shape(),
        step.dtypes()[i],
        std::shared_ptr<mx::Primitive>(takes, &takes->back()),
        std::vector<mx::array>{token});
  }
  return outputs;
}

} // namespace mlx_opt
