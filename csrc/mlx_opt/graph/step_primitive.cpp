#include "mlx_opt/graph/step_primitive.h"

#include <deque>
#include <stdexcept>

#include "mlx_opt/backend/cpu/step.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/donation.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {
namespace {

// Attaches the buffers to the token, where the StepOutputs find them.
const OutputBuffers& attach(OutputBuffers buffers, mx::array& token) {
  auto* held = new OutputBuffers(std::move(buffers));
  set_data(token, Data(mx::allocator::Buffer(held), [](mx::allocator::Buffer buffer) {
             delete static_cast<OutputBuffers*>(buffer.ptr());
           }));
  return *held;
}

// The buffers that an evaluated token carries.
OutputBuffers& buffers_of(const mx::array& token) {
  auto buffer = token.buffer();
  return *static_cast<OutputBuffers*>(buffer.ptr());
}

// Throws if codes or scales are not in the order of the tensor's elements.
void check_codes(const std::vector<mx::array>& inputs, const std::vector<TensorRun>& runs) {
  size_t first = 0;
  for (const auto& [tensors, operands, masters, scales] : runs) {
    for (size_t t = 0; t < tensors; ++t, first += operands) {
      for (int k = 1; scales > 0 && k < operands - 1; ++k) {
        const mx::array& x = inputs[first + k];
        const bool is_scale = k >= operands - 1 - scales;
        if ((is_scale || is_coded(storage_of(x.dtype()))) && !x.flags().row_contiguous) {
          throw std::runtime_error(
              "mlx_opt: a state in int8 is not row-contiguous: use mx.contiguous");
        }
      }
    }
  }
}

} // namespace

std::unique_ptr<Prepared> prepare(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode) {
  if (stream.device == mx::Device::cpu) {
    return cpu::prepare(spec, inputs, dtypes, stream, mode);
  }
  const auto& [backend, reason] = gpu::find_backend();
  if (!backend) {
    throw std::runtime_error("mlx_opt: no backend for the GPU: " + reason);
  }
  return backend->prepare(spec, inputs, dtypes, stream, mode);
}

size_t StepPrimitive::input_of(size_t position) const {
  size_t input = 0;
  for (const auto& [tensors, operands, masters, scales] : spec_.runs) {
    const size_t fields = operands - 1;
    if (position < tensors * fields) {
      return input + position / fields * operands + position % fields;
    }
    position -= tensors * fields;
    input += tensors * operands;
  }
  throw std::logic_error("mlx_opt: a step has no such output");
}

mx::Shape StepPrimitive::shape_of(size_t position, const std::vector<mx::array>& inputs) const {
  if (position == dtypes_.size()) {
    return {static_cast<int>(spec_.sources.size()), 2};
  }
  return inputs[input_of(position)].shape();
}

// The operands' addresses are recorded before their buffers are donated to the outputs, so the step
// is prepared first and queued last.
void StepPrimitive::enqueue(
    const std::vector<mx::array>& inputs,
    mx::array& token,
    const std::function<Data(size_t)>& allocate) {
  check_codes(inputs, spec_.runs);
  auto step = prepare(spec_, refs_to(inputs), dtypes_, stream(), LaunchMode::whole);
  OutputBuffers buffers = assign_output_buffers(inputs, spec_.runs, dtypes_, allocate);
  if (spec_.takes_norms) {
    buffers.buffers.push_back(allocate(2 * spec_.sources.size() * sizeof(float)));
  }
  const auto& held = attach(std::move(buffers), token);
  step->enqueue(held.written(), token.data_shared_ptr());
}

void StepPrimitive::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  wait_for_donatable_buffers(stream(), inputs, spec_.runs);
  enqueue(inputs, outputs[0], [](size_t bytes) { return new_data(bytes); });
}

void StepPrimitive::eval_gpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  enqueue(inputs, outputs[0], [this](size_t bytes) {
    return gpu::find_backend().backend->allocate(bytes, stream());
  });
}

std::shared_ptr<StepPrimitive> StepPrimitive::copy() const {
  auto stream = const_cast<StepPrimitive*>(this)->stream();
  return std::make_shared<StepPrimitive>(stream, spec_, dtypes_);
}

void StepOutput::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  set_data(outputs[0], std::move(buffers_of(inputs[0]).buffers[position_]));
}

void StepOutput::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  eval_cpu(inputs, outputs);
}

std::vector<mx::Shape> StepOutput::output_shapes(const std::vector<mx::array>& inputs) {
  const auto& step = static_cast<const StepPrimitive&>(inputs[0].primitive());
  return {step.shape_of(position_, inputs[0].inputs())};
}

mx::array token_of(std::shared_ptr<StepPrimitive> step, std::vector<mx::array> inputs) {
  return mx::array(mx::Shape{}, mx::uint8, std::move(step), std::move(inputs));
}

std::vector<mx::array> outputs_of(const mx::array& token) {
  const auto& step = static_cast<const StepPrimitive&>(token.primitive());
  const auto stream = token.primitive().stream();
  const auto& inputs = token.inputs();
  // The primitives share one allocation, which each of them keeps alive.
  auto primitives = std::make_shared<std::deque<StepOutput>>();
  std::vector<mx::array> outputs;
  outputs.reserve(step.dtypes().size());
  auto replaced = inputs.begin();
  for (const auto& [tensors, operands, masters, scales] : step.spec().runs) {
    for (size_t t = 0; t < tensors; ++t, ++replaced) {
      for (int k = 0; k < operands - 1; ++k, ++replaced) {
        const size_t position = outputs.size();
        primitives->emplace_back(stream, position);
        outputs.emplace_back(
            replaced->shape(),
            step.dtypes()[position],
            std::shared_ptr<mx::Primitive>(primitives, &primitives->back()),
            std::vector<mx::array>{token});
      }
    }
  }
  return outputs;
}

mx::array norms_of(const mx::array& token) {
  const auto& step = static_cast<const StepPrimitive&>(token.primitive());
  const size_t position = step.dtypes().size();
  auto output = std::make_shared<StepOutput>(token.primitive().stream(), position);
  return mx::array(
      step.shape_of(position, token.inputs()), mx::float32, std::move(output), {token});
}

} // namespace mlx_opt
