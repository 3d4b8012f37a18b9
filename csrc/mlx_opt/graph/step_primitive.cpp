#include "mlx_opt/graph/step_primitive.h"

#include <deque>
#include <stdexcept>

#include "mlx_opt/backend/cpu/step.h"
#include "mlx_opt/backend/find.h"

namespace mlx_opt {

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

// Where the operands lie must be read before place_outputs moves their buffers, so the step is
// queued with outputs that are placed between the two.
void TokenStep::enqueue(
    const std::vector<mx::array>& inputs,
    mx::array& token,
    const std::function<mx::array::Data(size_t)>& allocate) {
  auto step = prepare(pointers_to(inputs), Start::whole);
  const Handoff& held = hand_over(place_outputs(inputs, runs_, dtypes_, allocate), token);
  step->enqueue(held.written(), token.data_shared_ptr());
}

void TokenStep::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  release_held_buffers(stream(), inputs, runs_);
  enqueue(inputs, outputs[0], [](size_t bytes) { return mx::allocator::malloc(bytes); });
}

void TokenStep::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  enqueue(inputs, outputs[0], [this](size_t bytes) {
    return gpu::find_backend().backend->allocate(bytes, stream());
  });
}

std::unique_ptr<Prepared> Update::prepare(const Pointers& inputs, Start start) {
  if (stream().device == mx::Device::cpu) {
    return cpu::prepare(schedule_, inputs, dtypes(), stream());
  }
  const auto& [backend, reason] = gpu::find_backend();
  if (!backend) {
    throw std::runtime_error("mlx_opt: no backend for the GPU: " + reason);
  }
  return backend->prepare(schedule_, inputs, dtypes(), stream(), start);
}

std::shared_ptr<TokenStep> Update::again() const {
  return std::make_shared<Update>(const_cast<Update*>(this)->stream(), schedule_, dtypes());
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

std::vector<mx::array> outputs_of(
    std::shared_ptr<TokenStep> step,
    std::vector<mx::array> operands,
    const std::vector<mx::array>& scalars) {
  operands.insert(operands.end(), scalars.begin(), scalars.end());
  return take_all(token_of(std::move(step), std::move(operands)));
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
