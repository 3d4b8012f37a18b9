#include "mlx_opt/graph/sums.h"

#include <cmath>
#include <deque>
#include <stdexcept>
#include <utility>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx_opt/backend/cpu/sums.h"
#include "mlx_opt/graph/batch.h"
#include "mlx_opt/graph/masters.h"
#include "mlx_opt/graph/small_step.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {
namespace {

// The inputs of the sums, in the form that cpu::SumsTask takes.
struct SumInputs {
  StepSpec spec;
  std::vector<mx::array> arrays; // of the tensors, then the scalars
};

// The operands that the sums read: of each tensor the fields, then the gradient.
SumInputs inputs_of(const Request& request, const Leaves& leaves) {
  const Program& program = *request.program;
  CheckedStep checked = check(request, leaves);
  SumInputs inputs{std::move(checked.spec), {}};
  const unsigned reads = sum_info(program.rule()).reads;
  const int fields = info(program.rule()).slots + 1;
  for (size_t kind = 0; kind < leaves.kinds().size(); ++kind) {
    const Leaves::Kind& all = leaves.kinds()[kind];
    for (size_t i = 0; i < all.leaves.size(); ++i) {
      auto* const* leaf = &all.arrays[i * all.operands];
      for (int k = 0; k < fields; ++k) {
        if (reads >> k & 1) {
          const bool is_master = k == 0 && program.has_master(kind);
          inputs.arrays.push_back(
              is_master ? weight_of(*leaf[0], *leaf[fields], request.stream) : *leaf[k]);
        }
      }
      inputs.arrays.push_back(*leaf[all.operands - 1]);
    }
  }
  const int width = __builtin_popcount(reads) + 1;
  inputs.spec.runs = {{leaves.size(), width}};
  inputs.arrays.insert(inputs.arrays.end(), checked.scalars.begin(), checked.scalars.end());
  return inputs;
}

/// The sums of all groups in one array, one group after the other. On the CPU.
class SumsPrimitive : public mx::UnaryPrimitive {
 public:
  SumsPrimitive(mx::Stream stream, StepSpec spec)
      : mx::UnaryPrimitive(stream), spec_(std::move(spec)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& output) override {
    set_data(output, new_data(output.nbytes()));
    cpu::enqueue_sums(stream(), cpu::SumsTask(spec_, refs_to(inputs)), output.data<float>());
  }

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::logic_error("mlx_opt::Sums has no kernel for a GPU");
  }

  // One batch element after the other.
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override {
    int batch = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      batch = axes[i] >= 0 ? inputs[i].shape(axes[i]) : batch;
    }
    std::vector<mx::array> results;
    for (int b = 0; b < batch; ++b) {
      std::vector<mx::array> one;
      for (size_t i = 0; i < inputs.size(); ++i) {
        one.push_back(axes[i] >= 0 ? element_of(inputs[i], b, axes[i], stream()) : inputs[i]);
      }
      results.push_back(of(stream(), spec_, std::move(one)));
    }
    return {{mx::stack(results, 0, stream())}, {0}};
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>&) override {
    return {shape_of(spec_)};
  }

  const char* name() const override {
    return "mlx_opt::Sums";
  }

  static mx::Shape shape_of(const StepSpec& spec) {
    const auto size = spec.sources.size() * sum_info(spec.rule).sums;
    return {static_cast<mx::ShapeElem>(size)};
  }

  static mx::array of(mx::Stream stream, const StepSpec& spec, std::vector<mx::array> inputs) {
    auto primitive = std::make_shared<SumsPrimitive>(stream, spec);
    return mx::array(shape_of(spec), mx::float32, std::move(primitive), std::move(inputs));
  }

 private:
  StepSpec spec_;
};

using GroupSums = std::vector<std::vector<mx::array>>;

// `number(i)`: number i of all.
template <typename Number>
GroupSums by_group(const StepSpec& spec, Number number) {
  GroupSums result(spec.sources.size());
  size_t next = 0;
  for (auto& sums : result) {
    for (int k = 0; k < sum_info(spec.rule).sums; ++k) {
      sums.push_back(number(next++));
    }
  }
  return result;
}

mx::array as_float(const mx::array& x) {
  return mx::reshape(mx::astype(x, mx::float32), {});
}

using Exact = MLX_OPT_LEVEL::DAdaptation::Exact<mx::array>;

Exact exact(double x) {
  const auto number = [](double y) { return mx::array(static_cast<float>(y)); };
  return {number(x), number(1.0 - x), number(std::log(x))};
}

Exact exact(const mx::array& x) {
  return {x, mx::array(1.0f) - x, mx::log(x)};
}

// The numbers that the sums depend on, of the scalars of a group.
template <typename R>
typename R::template Weights<mx::array> weights_of(
    const GroupSources& sources, const GroupInputs& inputs) {
  std::vector<Exact> hypers;
  for (double x : sources.hypers) {
    hypers.push_back(exact(x));
  }
  for (size_t i = 0; i < sources.traced.size(); ++i) {
    hypers[sources.traced[i]] = exact(as_float(*inputs.traced[i]));
  }
  const mx::array rate = inputs.learning_rate ? as_float(*inputs.learning_rate) : mx::array(0.0f);
  constexpr size_t count = sizeof(typename R::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper);
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return R::prepare_sums(
        typename R::template Numbers<Exact>{hypers.at(i)...},
        rate * mx::array(sources.rate_scale),
        inputs.step ? as_float(*inputs.step) : mx::array(1.0f));
  }(std::make_index_sequence<count>());
}

// The gradient as the rule sees it.
mx::array scaled(const mx::array& gradient, const ScalarInputs& scalars) {
  mx::array g = mx::astype(gradient, mx::float32);
  g = scalars.scale ? g * *scalars.scale : g;
  return scalars.max_value ? mx::clip(g, -*scalars.max_value, *scalars.max_value) : g;
}

// The sums by MLX's own operations.
template <typename R>
GroupSums sums_by_operations(const SumInputs& inputs) {
  const StepSpec& spec = inputs.spec;
  const ArrayRefs arrays = refs_to(inputs.arrays);
  const auto& [tensors, width, _, __] = spec.runs[0];
  const ScalarInputs scalars(spec, arrays.data() + tensors * width);
  std::vector<typename R::template Weights<mx::array>> weights;
  for (size_t g = 0; g < spec.sources.size(); ++g) {
    weights.push_back(weights_of<R>(spec.sources[g], scalars.groups[g]));
  }
  GroupSums totals = by_group(spec, [](size_t) { return mx::array(0.0f); });
  auto next = arrays.begin();
  constexpr size_t fields = sizeof(typename R::Element) / sizeof(float);
  for (size_t t = 0; t < tensors; ++t) {
    std::vector<mx::array> element;
    for (size_t k = 0; k < fields; ++k) {
      const bool is_read = R::sums_read >> k & 1;
      element.push_back(is_read ? mx::astype(**next++, mx::float32) : mx::array(0.0f));
    }
    const mx::array g = scaled(**next++, scalars);
    if (g.size() == 0) {
      continue; // CUDA's kernels that mx.compile fuses divide by the size
    }
    const auto sums = [&]<size_t... k>(std::index_sequence<k...>) {
      return R::sums(
          typename R::template Fields<mx::array>{element.at(k)...}, g, weights[spec.group_of(t)]);
    }(std::make_index_sequence<fields>());
    const auto* first = reinterpret_cast<const mx::array*>(&sums);
    for (mx::array& total : totals[spec.group_of(t)]) {
      total = total + mx::sum(*first++);
    }
  }
  return totals;
}

GroupSums sums_by_operations(const SumInputs& inputs, mx::Stream stream) {
  const mx::StreamContext context(stream);
#define MLX_OPT_SUMS(name)                                  \
  if (inputs.spec.rule == Rule::name) {                     \
    return sums_by_operations<MLX_OPT_LEVEL::name>(inputs); \
  }
  MLX_OPT_FOR_EACH_SUMMING_RULE(MLX_OPT_SUMS)
#undef MLX_OPT_SUMS
  throw std::logic_error("mlx_opt: the rule has no sums over all tensors");
}

} // namespace

std::vector<std::vector<mx::array>> sums_of(
    const Request& request, const Leaves& leaves, bool by_operations) {
  const mx::Stream stream = request.stream;
  SumInputs inputs = inputs_of(request, leaves);
  if (by_operations || stream.device == mx::Device::gpu) {
    return sums_by_operations(inputs, stream);
  }
  if (are_small(inputs.arrays, stream)) {
    std::vector<float> values(SumsPrimitive::shape_of(inputs.spec)[0]);
    cpu::SumsTask(inputs.spec, refs_to(inputs.arrays)).run(values.data());
    return by_group(inputs.spec, [&](size_t i) { return mx::array(values[i]); });
  }
  const mx::array all = SumsPrimitive::of(stream, inputs.spec, std::move(inputs.arrays));
  return by_group(
      inputs.spec, [&](size_t i) { return mx::take(all, static_cast<int>(i), 0, stream); });
}

} // namespace mlx_opt
