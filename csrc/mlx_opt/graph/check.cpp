#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/request.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

bool is_zero(const Scalar& x) {
  return std::holds_alternative<double>(x) && std::get<double>(x) == 0.0;
}

bool reads(Rule rule, const Reads& reads, const std::vector<Scalar>& hypers) {
  switch (reads.when) {
    case Reads::always:
      return true;
    case Reads::never:
      return false;
    case Reads::if_set:
      return !is_zero(hypers[position_of(rule, reads.flag)]);
    case Reads::unless_set: {
      const Scalar& flag = hypers[position_of(rule, reads.flag)];
      return std::holds_alternative<mx::array>(flag) || is_zero(flag);
    }
  }
  return true;
}

// Collects the scalar inputs of a step, which follow its operands; see StepSpec.
class ScalarInputWriter {
 public:
  // `rounds`: true if results are rounded stochastically, differently in each step.
  ScalarInputWriter(Rule rule, bool rounds, mx::Stream stream, std::vector<mx::array>& scalars)
      : rule_(rule), rounds_(rounds), stream_(stream), scalars_(scalars) {}

  GroupSources push(const GroupScalars& group) {
    const Description& description = description_of(rule_);
    GroupSources sources;
    sources.rate_scale = group.rate_scale;
    sources.reads_step = rounds_ || reads(rule_, description.step, group.hypers);
    sources.reads_learning_rate = reads(rule_, description.learning_rate, group.hypers);
    if (sources.reads_step) {
      push("step", group.step, mx::uint64);
    }
    if (sources.reads_learning_rate) {
      push("learning_rate", group.learning_rate, mx::float32);
    }
    for (size_t i = 0; i < group.hypers.size(); ++i) {
      const auto* traced = std::get_if<mx::array>(&group.hypers[i]);
      sources.hypers.push_back(traced ? 0.0 : std::get<double>(group.hypers[i]));
      if (traced) {
        sources.traced.push_back(static_cast<int>(i));
        const auto infos = hypers_of(rule_);
        push(i < infos.size() ? infos[i].name : "ema_decay", *traced, mx::float32);
      }
    }
    return sources;
  }

  void push(const char* name, const mx::array& x, mx::Dtype dtype) {
    if (x.size() != 1) {
      refuse(rule_, std::string(name) + " must be a scalar, got shape " + shape_text(x.shape()));
    }
    if (mx::issubdtype(x.dtype(), mx::complexfloating)) {
      refuse(rule_, std::string(name) + " must be a real number, got " + dtype_text(x.dtype()));
    }
    scalars_.push_back(x.dtype() == dtype ? x : mx::astype(x, dtype, stream_));
  }

 private:
  Rule rule_;
  bool rounds_;
  mx::Stream stream_;
  std::vector<mx::array>& scalars_;
};

} // namespace

void push_dtypes(
    const Slots& slots,
    bool keeps_parameter,
    const mx::array* const* operands,
    bool coupled,
    std::vector<mx::Dtype>& dtypes) {
  mx::Dtype gradient = operands[slots.size() + 1]->dtype();
  const auto promotes_nothing = [&](const mx::array* x) { return x->dtype() == gradient; };
  if (std::all_of(operands, operands + slots.size() + 1, promotes_nothing) &&
      std::all_of(slots.begin(), slots.end(), [](const SlotInfo* slot) {
        return slot->format == Format::promoted;
      })) {
    for (size_t k = 0; k <= slots.size(); ++k) {
      dtypes.push_back(operands[k]->dtype());
    }
    return;
  }
  // Weight decay that is added to the gradient promotes it with the parameter's dtype. A parameter
  // with a master weight is updated as one in float32 is by a gradient in float32.
  if (has_master(slots)) {
    gradient = mx::float32;
  } else if (coupled) {
    gradient = mx::promote_types(gradient, operands[0]->dtype());
  }
  const size_t parameter = dtypes.size();
  dtypes.push_back(mx::promote_types(operands[0]->dtype(), gradient));
  mx::Dtype before = gradient;
  for (size_t k = 0; k < slots.size(); ++k) {
    if (slots[k]->format != Format::promoted) {
      keeps_parameter = true;
      dtypes.push_back(slot_dtype(*slots[k], operands[0]->dtype()));
      continue;
    }
    const mx::Dtype other = slots[k]->follows ? before : gradient;
    dtypes.push_back(mx::promote_types(operands[k + 1]->dtype(), other));
    before = mx::promote_types(before, dtypes.back());
  }
  dtypes[parameter] =
      keeps_parameter ? operands[0]->dtype() : mx::promote_types(dtypes[parameter], before);
}

bool is_coupled(Rule rule, const std::vector<Scalar>& hypers) {
  const Coupling& coupling = description_of(rule).coupling;
  const auto is_zero = [&](const char* hyper) {
    return mlx_opt::is_zero(hypers[position_of(rule, hyper)]);
  };
  static_assert(static_cast<int>(MLX_OPT_LEVEL::DecayKind::coupled) == 0);
  switch (coupling.when) {
    case Coupling::never:
      return false;
    case Coupling::always:
      return true;
    case Coupling::unless_zero:
      return !is_zero(coupling.decay) && (!coupling.kind || is_zero(coupling.kind));
  }
  return true;
}

CheckedStep check(const Request& request, const Leaves& leaves) {
  const Rule rule = request.program->rule();
  CheckedStep checked;
  checked.spec.rule = rule;
  checked.spec.has_ema = request.program->has_ema();
  checked.spec.takes_norms = request.norms != nullptr;
  if (!available(request.stream.device)) {
    refuse(rule, "there is no kernel for this device");
  }
  std::vector<bool> coupled; // of each group
  const bool rounds = request.program->rounding_seed().has_value();
  ScalarInputWriter writer(rule, rounds, request.stream, checked.scalars);
  for (const GroupScalars& group : request.groups) {
    if (group.hypers.size() != request.program->hypers()) {
      refuse(
          rule,
          "expected " + std::to_string(request.program->hypers()) + " hyperparameters, got " +
              std::to_string(group.hypers.size()));
    }
    coupled.push_back(is_coupled(rule, group.hypers));
    checked.spec.sources.push_back(writer.push(group));
  }
  if (request.scale) {
    checked.spec.scaling = request.scale->skip_nonfinite ? Scaling::if_finite : Scaling::always;
    writer.push("gradient scale", request.scale->value, mx::float32);
    checked.spec.clips_values = request.scale->max_value.has_value();
    if (request.scale->max_value) {
      writer.push("max_value", *request.scale->max_value, mx::float32);
    }
  }
  const bool keeps_parameter = request.program->keeps_parameter();
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const auto& [operands, members, arrays, groups, rounding_keys] = leaves.kinds()[kind];
    const bool has_master = request.program->has_master(kind);
    checked.spec.runs.push_back(
        {members.size(),
         operands,
         has_master ? request.program->masters() : MasterWeights::none,
         request.program->scales(kind)});
    checked.dtypes.reserve(checked.dtypes.size() + arrays.size());
    auto leaf = arrays.data();
    for (uint16_t group : groups) {
      const Slots& slots = request.program->slots(kind);
      push_dtypes(slots, keeps_parameter, leaf, coupled[group], checked.dtypes);
      leaf += operands;
    }
    if (request.groups.size() > 1) {
      checked.spec.groups.insert(checked.spec.groups.end(), groups.begin(), groups.end());
    }
    auto& keys = checked.spec.rounding_keys;
    keys.insert(keys.end(), rounding_keys.begin(), rounding_keys.end());
  }
  return checked;
}

ArrayRefs Leaves::operands() const {
  ArrayRefs operands;
  size_t count = 0;
  for (const Kind& kind : kinds_) {
    count += kind.arrays.size();
  }
  operands.reserve(count + 8); // the scalars follow
  for (const Kind& kind : kinds_) {
    operands.insert(operands.end(), kind.arrays.begin(), kind.arrays.end());
  }
  return operands;
}

void Leaves::append(const Leaves& other, uint16_t first_group) {
  for (size_t k = 0; k < kinds_.size(); ++k) {
    Kind& kind = kinds_[k];
    const Kind& added = other.kinds_[k];
    for (size_t i = 0; i < added.leaves.size(); ++i) {
      kind.leaves.push_back(size_ + added.leaves[i]);
      kind.groups.push_back(first_group + added.groups[i]);
    }
    kind.arrays.insert(kind.arrays.end(), added.arrays.begin(), added.arrays.end());
    auto& keys = kind.rounding_keys;
    keys.insert(keys.end(), added.rounding_keys.begin(), added.rounding_keys.end());
  }
  size_ += other.size_;
}

std::vector<size_t> Leaves::order() const {
  std::vector<size_t> order;
  order.reserve(size_);
  for (const Kind& kind : kinds_) {
    order.insert(order.end(), kind.leaves.begin(), kind.leaves.end());
  }
  return order;
}

std::string shape_problem(const Slots& slots, const mx::array* const* operands) {
  const mx::Shape& shape = operands[0]->shape();
  const mx::Shape& gradient = operands[slots.size() + 1]->shape();
  if (gradient != shape) {
    return "gradient " + shape_text(gradient) + ", parameter " + shape_text(shape);
  }
  for (size_t k = 0; k < slots.size(); ++k) {
    const mx::Shape& given = operands[k + 1]->shape();
    const bool like_parameter = slots[k]->extent == Extent::elements;
    if (like_parameter && given == shape) {
      continue;
    }
    const mx::Shape expected = slot_shape(*slots[k], shape);
    if (given != expected) {
      return std::string("state \"") + slots[k]->name + "\" " + shape_text(given) +
             (like_parameter ? ", parameter " : ", expected ") + shape_text(expected);
    }
  }
  return "";
}

bool is_served(const Slots& slots, const mx::array* const* operands) {
  const size_t count = slots.size() + 2;
  for (size_t k = 0; k < count; ++k) {
    const bool is_slot = 0 < k && k <= slots.size();
    const mx::Dtype dtype = operands[k]->dtype();
    const Format format = is_slot ? slots[k - 1]->format : Format::promoted;
    const bool is_exact = format == Format::bits16 || format == Format::int8 ||
                          (is_slot && slots[k - 1]->extent == Extent::blocks);
    const bool fits =
        is_exact ? dtype == slot_dtype(*slots[k - 1], mx::float32) : is_storage(dtype);
    if (!fits) {
      return false;
    }
  }
  return true;
}

std::string codes_problem(const Slots& slots, const mx::array* const* operands) {
  for (size_t k = 0; k < slots.size(); ++k) {
    const bool is_coded = slots[k]->format == Format::int8 || slots[k]->extent == Extent::blocks;
    const mx::Dtype expected = slot_dtype(*slots[k], mx::float32);
    if (is_coded && operands[k + 1]->dtype() != expected) {
      return std::string("state \"") + slots[k]->name + "\" " +
             dtype_text(operands[k + 1]->dtype()) + ", expected " + dtype_text(expected);
    }
  }
  return "";
}

} // namespace mlx_opt
