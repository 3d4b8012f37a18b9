#include "mlx_opt/backend/cuda/uniforms.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "mlx_opt/backend/cuda/memory.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/records.h"
#include "mlx_opt/backend/cuda/scalar_tables.h"

namespace mlx_opt::cuda {
namespace {

constexpr size_t head = sizeof(ScalarTable<1, 1>) - sizeof(GroupTable<1>);

// The maximum number of groups of a launch.
int groups_of_a_launch(const UniformsShape& shape, size_t groups) {
  const size_t group = sizeof(GroupTable<1>) + (shape.hypers - 1) * sizeof(HyperSource);
  const int max_groups = capacity_of(small_parameter, head, group);
  if (max_groups == 0) {
    throw std::runtime_error(
        "mlx_opt: " + std::string(shape.rule) + " has " + std::to_string(shape.hypers) +
        " hyperparameters, more than a kernel of CUDA takes");
  }
  // Most steps have one group, which needs the smallest parameter.
  return groups == 1 ? 1 : max_groups;
}

void check(const UniformsShape& shape, const StepSpec& spec) {
  size_t tensors = 0;
  for (const TensorRun& run : spec.runs) {
    tensors += run.tensors;
  }
  const bool fits =
      (spec.groups.empty() || spec.groups.size() == tensors) && !spec.sources.empty() &&
      std::all_of(
          spec.groups.begin(),
          spec.groups.end(),
          [&](uint16_t group) { return group < spec.sources.size(); }) &&
      std::all_of(spec.sources.begin(), spec.sources.end(), [&](const GroupSources& sources) {
        return sources.hypers.size() == static_cast<size_t>(shape.hypers);
      });
  if (!fits) {
    throw std::logic_error("mlx_opt: the groups of a step do not fit its tensors and its rule");
  }
}

template <typename T>
const T* address_if_any(const mx::array* x) {
  return x ? address<T>(*x) : nullptr;
}

void add_group(const GroupSources& sources, const GroupInputs& inputs, Parameter& parameter) {
  parameter.add(address_if_any<unsigned long long>(inputs.step));
  parameter.add(address_if_any<float>(inputs.learning_rate));
  parameter.add(double{sources.rate_scale});
  for (size_t k = 0; k < sources.hypers.size(); ++k) {
    const auto hyper = make_hyper(sources.hypers[k]);
    const auto traced =
        std::find(sources.traced.begin(), sources.traced.end(), static_cast<int>(k));
    parameter.add(HyperSource{
        traced == sources.traced.end()
            ? nullptr
            : address<float>(*inputs.traced[traced - sources.traced.begin()]),
        hyper.value,
        hyper.one_minus,
        hyper.log});
  }
}

} // namespace

mx::array new_group_uniforms(const UniformsShape& shape, const StepSpec& spec, mx::Stream stream) {
  check(shape, spec);
  const auto bytes = static_cast<int>(spec.sources.size() * shape.floats() * sizeof(float));
  return mx::array(device_memory(bytes, stream), {bytes}, mx::uint8);
}

void launch_prepare(
    mx::cu::CommandEncoder& encoder,
    const UniformsShape& shape,
    const StepSpec& spec,
    const mx::array* const* scalars,
    const mx::array& group_uniforms) {
  const ScalarInputs inputs(spec, scalars);
  const size_t groups = spec.sources.size();
  const int capacity = groups_of_a_launch(shape, groups);
  const auto prepare =
      function(PrepareKernel{shape.rule, shape.hypers, capacity, shape.has_ema}, encoder.device());
  const float* scale = address_if_any<float>(inputs.scale);
  const float* max_value = address_if_any<float>(inputs.max_value);
  for (size_t begin = 0; begin < groups; begin += capacity) {
    const size_t end = std::min(begin + capacity, groups);
    Parameter parameter;
    parameter.add(scale);
    parameter.add(max_value);
    parameter.add(address<float>(group_uniforms) + begin * shape.floats());
    for (size_t group = begin; group < end; ++group) {
      add_group(spec.sources[group], inputs.groups[group], parameter);
    }
    for (const mx::array* x : inputs.all()) {
      encoder.set_input_array(*x);
    }
    encoder.set_output_array(group_uniforms);
    launch(encoder, prepare, static_cast<unsigned>(end - begin), 1, parameter.data());
  }
}

} // namespace mlx_opt::cuda
