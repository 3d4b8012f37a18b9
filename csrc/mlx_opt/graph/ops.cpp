#include "mlx_opt/graph/ops.h"

#include <optional>

#include "mlx_opt/graph/composition.h"
#include "mlx_opt/graph/ema.h"
#include "mlx_opt/graph/masters.h"
#include "mlx_opt/graph/rounding.h"
#include "mlx_opt/graph/stages.h"
#include "mlx_opt/graph/step_primitive.h"
#include "mlx_opt/graph/weight_norms.h"

namespace mlx_opt {
namespace {

void check_operands(const Program& program, size_t kind, const mx::array* const* operands) {
  const std::string problem = shape_problem(program.slots(kind), operands);
  if (!problem.empty()) {
    refuse(program.rule(), problem);
  }
  if (!is_served(program.slots(kind), operands)) {
    const std::string of_codes = codes_problem(program.slots(kind), operands);
    const std::string expected = "operands must be float32, float16 or bfloat16";
    refuse(program.rule(), of_codes.empty() ? expected : of_codes);
  }
}

// The token of a step that is run after that of another.
mx::array token_of(const Request& request, const Leaves& leaves, const mx::array* before) {
  std::vector<mx::array> inputs;
  const ArrayRefs operands = leaves.operands();
  inputs.reserve(operands.size() + 8);
  for (const mx::array* x : operands) {
    inputs.push_back(*x);
  }
  CheckedStep checked = check(request, leaves);
  inputs.insert(inputs.end(), checked.scalars.begin(), checked.scalars.end());
  if (before) {
    inputs.back() = after(inputs.back(), *before, request.stream);
  }
  auto primitive = std::make_shared<StepPrimitive>(
      request.stream, std::move(checked.spec), std::move(checked.dtypes));
  return token_of(std::move(primitive), std::move(inputs));
}

// One stage after another. A parameter that the backward pass still reads, to get at the gradients
// of the next stage, is written over its gradient.
std::vector<mx::array> successors_in(
    const Stages& stages, const Request& request, const Leaves& leaves) {
  const auto& kinds = leaves.kinds();
  std::vector<size_t> first; // of each kind's outputs
  size_t outputs = 0;
  for (const Leaves::Kind& kind : kinds) {
    first.push_back(outputs);
    outputs += kind.leaves.size() * (kind.operands - 1);
  }
  std::vector<std::optional<mx::array>> results(outputs);
  std::optional<mx::array> token;
  WeightNorms norms(request.groups.size(), request.stream);
  for (const auto& places : stages) {
    Leaves part(*request.program, places.size());
    for (const auto& [kind, i] : places) {
      const Leaves::Kind& all = kinds[kind];
      auto& arrays = part.add_as(kind, all, i).arrays;
      const auto begin = all.arrays.begin() + i * all.operands;
      arrays.insert(arrays.end(), begin, begin + all.operands);
    }
    token = token_of(request, part, token ? &*token : nullptr);
    if (request.norms) {
      norms.add(norms_of(*token));
    }
    auto next = outputs_of(*token);
    auto made = next.begin();
    for (size_t kind = 0; kind < kinds.size(); ++kind) {
      const size_t width = kinds[kind].operands - 1;
      for (const size_t leaf : part.kinds()[kind].leaves) {
        for (size_t k = 0; k < width; ++k) {
          results[first[kind] + places[leaf].index * width + k] = std::move(*made++);
        }
      }
    }
  }
  if (request.norms) {
    *request.norms = norms.norms();
  }
  std::vector<mx::array> all;
  all.reserve(outputs);
  for (auto& x : results) {
    all.push_back(std::move(*x));
  }
  return all;
}

} // namespace

std::vector<mx::array> successors(const Request& request, const Leaves& leaves) {
  if (leaves.size() == 0) {
    return {};
  }
  const Program& program = *request.program;
  if (request.norms && !kernels_take_norms(program, request.stream.device)) {
    Request without = request;
    without.norms = nullptr;
    std::vector<mx::array> results = successors(without, leaves);
    *request.norms = norms_of(request, leaves, results);
    return results;
  }
  if (!program.is_fused()) {
    if (program.has_ema()) {
      return step_with_ema(request, leaves, successors);
    }
    if (program.masters() != MasterWeights::none) {
      return step_on_masters(request, leaves, successors);
    }
    if (program.rounding_seed()) {
      return step_then_round(request, leaves, successors);
    }
    return program.composition()->successors(request, leaves);
  }
  // A norm needs all gradients before the first update.
  const Stages stages = request.scale ? Stages() : stages_of(leaves);
  if (!stages.empty()) {
    return successors_in(stages, request, leaves);
  }
  const mx::array token = token_of(request, leaves, nullptr);
  if (request.norms) {
    *request.norms = norms_of(token);
  }
  return outputs_of(token);
}

std::vector<mx::array> step(
    const Program& program,
    std::vector<mx::array> operands,
    const std::vector<size_t>& tensors,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  Leaves leaves(program);
  size_t next = 0;
  for (size_t kind = 0; kind < tensors.size(); ++kind) {
    const size_t width = program.operands(kind);
    for (size_t t = 0; t < tensors[kind]; ++t, next += width) {
      if (next + width > operands.size()) {
        refuse(program.rule(), "there are fewer operands than the tensors have");
      }
      const uint32_t key = program.rounding_key(std::to_string(leaves.size()));
      auto& arrays = leaves.add(kind, 0, key).arrays;
      for (size_t k = 0; k < width; ++k) {
        arrays.push_back(&operands[next + k]);
      }
      check_operands(program, kind, &arrays[t * width]);
    }
  }
  if (next != operands.size()) {
    refuse(program.rule(), "there are more operands than the tensors have");
  }
  return successors({&program, {{hypers, learning_rate, step}}, scale, mx::to_stream(s)}, leaves);
}

std::vector<mx::array> step(
    Rule rule,
    std::vector<mx::array> operands,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<GradientScale>& scale) {
  const Program program(rule);
  const size_t tensors = operands.size() / program.operands(0);
  return mlx_opt::step(
      program, std::move(operands), {tensors}, hypers, learning_rate, step, s, scale);
}

} // namespace mlx_opt
