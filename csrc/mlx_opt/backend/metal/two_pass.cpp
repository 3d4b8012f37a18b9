#include "mlx_opt/backend/metal/two_pass.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "mlx_opt/backend/metal/dispatch.h"
#include "mlx_opt/backend/metal/in_flight.h"
#include "mlx_opt/backend/metal/library.h"
#include "mlx_opt/backend/metal/two_pass_source.h"
#include "mlx_opt/backend/metal/two_pass_tables.h"
#include "mlx_opt/backend/metal/uniforms.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::metal {
namespace {

using Pipeline = MTL::ComputePipelineState*;

// A second pass without the gradient needs only the parameter's layout.
Walk second_walk_of(const TwoPassInfo& rule, const Leaf& leaf) {
  if (rule.reads_gradient_again) {
    return leaf.kernel.walk;
  }
  if (!leaf.parameter) {
    return Walk::flat;
  }
  const bool small = leaf.size <= std::numeric_limits<uint32_t>::max();
  return small ? Walk::strided : Walk::strided_long;
}

// The kernels of the passes over the tensors of a dispatch.
struct Passes {
  Dispatch dispatch; // with the kernel of a whole update
  PassKernel state;
  PassKernel second;
  Pipeline state_pipeline = nullptr;
  Pipeline second_pipeline = nullptr;

  Passes(const TwoPassInfo& rule, Dispatch own)
      : dispatch(std::move(own)),
        state(pass_of(rule, Pass::state, dispatch.kernel, dispatch.kernel.walk)),
        second(pass_of(
            rule,
            second_pass_of(rule),
            dispatch.kernel,
            second_walk_of(rule, *dispatch.leaves[0]))) {}
};

mx::array floats(uint64_t count) {
  const auto size = static_cast<int>(count);
  return array_from(new_data(count * sizeof(float)), {size}, mx::float32);
}

// What the passes over the tensors of a dispatch pass on. Each dispatch has its own, so that MLX
// inserts no barrier between the dispatches of a pass.
struct Scratch {
  std::vector<Share> shares;
  mx::array sums;
  mx::array rates;
};

Scratch scratch_for(const Dispatch& dispatch) {
  std::vector<Share> shares;
  uint64_t groups = 0;
  for (const Leaf* leaf : dispatch.leaves) {
    const auto own = static_cast<unsigned>(leaf->threadgroups);
    shares.push_back({static_cast<unsigned>(groups), own, leaf->group});
    groups += leaf->threadgroups;
  }
  return {std::move(shares), floats(groups * max_sums), floats(dispatch.leaves.size() * max_sums)};
}

class TwoPassStep : public Prepared {
 public:
  TwoPassStep(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override;

 private:
  void find_passes();
  void encode(
      std::vector<Scratch>& scratch, const mx::array& group_uniforms, const Buffers& outputs);
  void encode_state(
      const Passes& passes,
      const mx::array& group_uniforms,
      mx::array& sums,
      const Buffers& outputs);
  void encode_rates(const mx::array& group_uniforms, Scratch& scratch);
  Places second_places_of(const Leaf& leaf, const Buffers& outputs) const;
  uint64_t set_second_arguments(const Dispatch& dispatch);
  void encode_second(
      const Passes& passes,
      const mx::array& group_uniforms,
      const mx::array& rates,
      const Buffers& outputs);

  mx::Stream stream_;
  mx::metal::Device& device_;
  mx::metal::CommandEncoder& encoder_;
  const RuleInfo& rule_;
  const TwoPassInfo& passes_of_rule_;
  std::vector<Leaf> leaves_;
  std::vector<Passes> passes_;
  Pipeline rates_pipeline_ = nullptr;
  std::optional<GroupUniforms> group_uniforms_;
};

TwoPassStep::TwoPassStep(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      device_(mx::metal::device(stream.device)),
      encoder_(mx::metal::get_command_encoder(stream)),
      rule_(info(spec.rule)),
      passes_of_rule_(two_pass_info(spec.rule)),
      leaves_(leaves_of(spec, inputs, dtypes)) {
  if (!leaves_.empty()) {
    find_passes();
    rates_pipeline_ = pipeline(RatesKernel{rule_.name}, device_);
    const UniformsShape shape{rule_.name, rule_.hypers, rule_.scalars};
    group_uniforms_.emplace(shape, spec, inputs.data() + spec.operand_count(), device_);
  }
}

// Compiles the kernels, and throws the compiler's error.
void TwoPassStep::find_passes() {
  passes_.clear();
  const auto room = [&](const Operands& step) { return max_per_pass(passes_of_rule_, step); };
  for (Dispatch& dispatch : dispatches_over(leaves_, room)) {
    Passes own(passes_of_rule_, std::move(dispatch));
    const auto same = std::find_if(passes_.begin(), passes_.end(), [&](const Passes& other) {
      return other.state == own.state && other.second == own.second;
    });
    const bool known = same != passes_.end();
    own.state_pipeline = known ? same->state_pipeline : pipeline(own.state, device_);
    own.second_pipeline = known ? same->second_pipeline : pipeline(own.second, device_);
    passes_.push_back(std::move(own));
  }
}

void TwoPassStep::encode_state(
    const Passes& passes,
    const mx::array& group_uniforms,
    mx::array& sums,
    const Buffers& outputs) {
  const auto places_of = [&](const Leaf& leaf) {
    if (!passes_of_rule_.updates_state_first) {
      return Places{leaf.in, {}};
    }
    Places places{leaf.in, leaf.out(outputs)};
    places.out.erase(places.out.begin());
    return places;
  };
  encoder_.set_compute_pipeline_state(passes.state_pipeline);
  encoder_.set_input_array(group_uniforms, uniforms_slot);
  encoder_.set_output_array(sums, sums_slot);
  const uint64_t groups = set_arguments(encoder_, passes.dispatch);
  set_operands(encoder_, passes.state.update, passes.dispatch, places_of, pass_operands_slot);
  encoder_.dispatch_threadgroups(MTL::Size(groups, 1, 1), MTL::Size(threads, 1, 1));
}

void TwoPassStep::encode_rates(const mx::array& group_uniforms, Scratch& scratch) {
  encoder_.set_compute_pipeline_state(rates_pipeline_);
  encoder_.set_input_array(group_uniforms, uniforms_slot);
  encoder_.set_vector_bytes(scratch.shares, arguments_slot);
  encoder_.set_input_array(scratch.sums, sums_slot);
  encoder_.set_output_array(scratch.rates, new_rates_slot);
  encoder_.dispatch_threadgroups(MTL::Size(scratch.shares.size(), 1, 1), MTL::Size(threads, 1, 1));
}

Places TwoPassStep::second_places_of(const Leaf& leaf, const Buffers& outputs) const {
  if (!passes_of_rule_.updates_state_first) {
    return {leaf.in, leaf.out(outputs)};
  }
  Places places{leaf.out(outputs), {}};
  places.out.push_back(std::exchange(places.in[0], leaf.in[0]));
  if (passes_of_rule_.reads_gradient_again) {
    places.in.push_back(leaf.in.back());
  }
  return places;
}

// Returns the number of threadgroups.
uint64_t TwoPassStep::set_second_arguments(const Dispatch& dispatch) {
  const Leaf& leaf = *dispatch.leaves[0];
  if (passes_of_rule_.reads_gradient_again) {
    if (passes_of_rule_.updates_state_first && leaf.is_strided()) {
      encoder_.set_vector_bytes(leaf.arguments_with_new_slots(), arguments_slot);
      return leaf.threadgroups;
    }
    return set_arguments(encoder_, dispatch);
  }
  if (leaf.parameter) {
    encoder_.set_bytes(*leaf.parameter, arguments_slot);
    return chunks_of(leaf.size);
  }
  return set_pack(encoder_, dispatch);
}

void TwoPassStep::encode_second(
    const Passes& passes,
    const mx::array& group_uniforms,
    const mx::array& rates,
    const Buffers& outputs) {
  const Dispatch& dispatch = passes.dispatch;
  const auto places_of = [&](const Leaf& leaf) { return second_places_of(leaf, outputs); };
  encoder_.set_compute_pipeline_state(passes.second_pipeline);
  encoder_.set_input_array(group_uniforms, uniforms_slot);
  encoder_.set_input_array(rates, rates_slot);
  const uint64_t groups = set_second_arguments(dispatch);
  set_operands(encoder_, passes.second.update, dispatch, places_of, pass_operands_slot);
  encoder_.dispatch_threadgroups(MTL::Size(groups, 1, 1), MTL::Size(threads, 1, 1));
}

// Encodes pass after pass over all tensors, so that MLX inserts one barrier for each pass.
void TwoPassStep::encode(
    std::vector<Scratch>& scratch, const mx::array& group_uniforms, const Buffers& outputs) {
  for (size_t k = 0; k < passes_.size(); ++k) {
    encode_state(passes_[k], group_uniforms, scratch[k].sums, outputs);
  }
  for (Scratch& own : scratch) {
    encode_rates(group_uniforms, own);
  }
  for (size_t k = 0; k < passes_.size(); ++k) {
    encode_second(passes_[k], group_uniforms, scratch[k].rates, outputs);
  }
}

void TwoPassStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) {
  if (leaves_.empty()) {
    return;
  }
  if (!place_all(leaves_, outputs)) {
    find_passes();
  }
  std::vector<Scratch> scratch;
  scratch.reserve(passes_.size());
  for (const Passes& passes : passes_) {
    scratch.push_back(scratch_for(passes.dispatch));
  }
  encode(scratch, group_uniforms_->encode(encoder_), outputs);
  for (Scratch& own : scratch) {
    encoder_.add_temporary(std::move(own.sums));
    encoder_.add_temporary(std::move(own.rates));
  }
  end_step(stream_, encoder_, std::move(keep_alive));
}

} // namespace

std::unique_ptr<Prepared> prepare_two_passes(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<TwoPassStep>(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::metal
