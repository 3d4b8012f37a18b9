#include "mlx_opt/backend/metal/uniforms.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "mlx_opt/backend/metal/kernel_source.h"
#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::metal {
namespace {

// The maximum size of an argument without a buffer in Metal.
constexpr size_t max_argument_bytes = 4096;

// The sources of a group besides its hyperparameters: the step, the learning rate, the scale
// and the maximum.
constexpr size_t other_sources = 4;

Source constant(float value) {
  return {value, 0.0f, 0.0f, -1};
}

// Rounds up, so that there are few kernels. A group with constant hyperparameters reads up to three
// scalars.
int capacity_for(size_t scalars) {
  return scalars <= 4 ? 4 : scalars <= 8 ? 8 : scalar_slots;
}

} // namespace

bool GroupUniforms::Dispatch::has_room(size_t more_sources, size_t more_scalars) const {
  return (sources.size() + more_sources) * sizeof(Source) <= max_argument_bytes &&
         scalars.size() + more_scalars <= static_cast<size_t>(scalar_slots);
}

// Groups that share a scalar, as they do the scale, share its slot.
void GroupUniforms::Dispatch::add(const mx::array* scalar, Source otherwise) {
  if (!scalar) {
    sources.push_back(otherwise);
    return;
  }
  const auto known = std::find_if(
      scalars.begin(), scalars.end(), [&](const mx::array& x) { return x.id() == scalar->id(); });
  sources.push_back({0.0f, 0.0f, 0.0f, static_cast<int>(known - scalars.begin())});
  if (known == scalars.end()) {
    scalars.push_back(*scalar);
  }
}

GroupUniforms::GroupUniforms(
    const UniformsShape& shape,
    const StepSpec& spec,
    const mx::array* const* scalars,
    mx::metal::Device& device)
    : shape_(shape) {
  const ScalarInputs inputs(spec, scalars);
  for (size_t group = 0; group < spec.sources.size(); ++group) {
    add_group(spec.sources[group], inputs.groups[group], inputs);
  }
  for (Dispatch& dispatch : dispatches_) {
    dispatch.capacity = capacity_for(dispatch.scalars.size());
    dispatch.pipeline =
        pipeline(PrepareKernel{shape.rule, dispatch.capacity, shape.has_ema}, device);
  }
}

void GroupUniforms::add_group(
    const GroupSources& group, const GroupInputs& inputs, const ScalarInputs& all) {
  const size_t sources = group.hypers.size() + other_sources;
  const size_t read = inputs.traced.size() + (inputs.step != nullptr) +
                      (inputs.learning_rate != nullptr) + (all.scale != nullptr) +
                      (all.max_value != nullptr);
  if (!Dispatch{}.has_room(sources, read)) {
    throw std::runtime_error(
        "mlx_opt: a group of " + std::string(shape_.rule) + " has " +
        std::to_string(group.hypers.size()) + " hyperparameters and reads " + std::to_string(read) +
        " scalars, and a kernel of Metal has room for " +
        std::to_string(max_argument_bytes / sizeof(Source) - other_sources) + " and " +
        std::to_string(scalar_slots));
  }
  if (dispatches_.empty() || !dispatches_.back().has_room(sources, read)) {
    dispatches_.push_back({groups_});
  }
  Dispatch& dispatch = dispatches_.back();
  dispatch.add(inputs.step, constant(0.0f));
  dispatch.add(inputs.learning_rate, constant(0.0f));
  if (inputs.learning_rate) {
    dispatch.sources.back().value = group.rate_scale;
  }
  for (size_t k = 0; k < group.hypers.size(); ++k) {
    const auto traced = std::find(group.traced.begin(), group.traced.end(), static_cast<int>(k));
    const bool is_read = traced != group.traced.end();
    const auto hyper = make_hyper(group.hypers[k]);
    dispatch.add(
        is_read ? inputs.traced[traced - group.traced.begin()] : nullptr,
        {hyper.value, hyper.one_minus, hyper.log, -1});
  }
  dispatch.add(all.scale, constant(1.0f));
  dispatch.add(all.max_value, constant(std::numeric_limits<float>::infinity()));
  ++dispatch.groups;
  ++groups_;
}

mx::array GroupUniforms::encode(mx::metal::CommandEncoder& encoder) const {
  const auto floats = static_cast<int>(groups_ * shape_.floats());
  mx::array group_uniforms = array_from(new_data(floats * sizeof(float)), {floats}, mx::float32);
  for (const Dispatch& dispatch : dispatches_) {
    const auto first = static_cast<int64_t>(dispatch.first_group * shape_.floats());
    encoder.set_compute_pipeline_state(dispatch.pipeline);
    encoder.set_output_array(
        group_uniforms, uniforms_slot, first * static_cast<int64_t>(sizeof(float)));
    encoder.set_vector_bytes(dispatch.sources, arguments_slot);
    // Every slot of a kernel must be bound; it does not matter to what if it is not read.
    const auto count = static_cast<int>(dispatch.scalars.size());
    for (int k = 0; k < dispatch.capacity; ++k) {
      encoder.set_input_array(k < count ? dispatch.scalars[k] : group_uniforms, operands_slot + k);
    }
    encoder.dispatch_threadgroups(MTL::Size(dispatch.groups, 1, 1), MTL::Size(1, 1, 1));
  }
  encoder.add_temporary(group_uniforms);
  return group_uniforms;
}

} // namespace mlx_opt::metal
