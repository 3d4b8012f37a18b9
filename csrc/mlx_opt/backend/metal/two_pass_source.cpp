#include "mlx_opt/backend/metal/two_pass_source.h"

#include <algorithm>

#include "mlx_opt/backend/metal/kernel_program.h"
#include "mlx_opt/backend/metal/two_pass_tables.h"

namespace mlx_opt::metal {
namespace {

// The operands of the first pass: parameter, slots and gradient; it may write the slots.
Operands of_state(const TwoPassInfo& rule, Operands operands) {
  if (!rule.updates_state_first) {
    return {operands.in, {}, {}};
  }
  operands.out.erase(operands.out.begin());
  operands.written.erase(operands.written.begin());
  return operands;
}

// The operands of a second pass over the parameter and the new slots; it writes the parameter. The
// pass does not read other inputs that the parameter may overwrite.
Operands of_parameter(const Operands& step) {
  Operands operands{step.out, {step.out[0]}, {step.written[0] == 0 ? int8_t{0} : apart}};
  operands.in[0] = step.in[0];
  return operands;
}

// The operands of a second pass that reads the gradient: the parameter, the slots, which are new if
// the first pass has updated them, and the gradient; it writes what the first pass has not.
Operands of_gradient(const TwoPassInfo& rule, const Operands& step) {
  if (!rule.updates_state_first) {
    return step;
  }
  Operands operands{step.out, {step.out[0]}, {step.written[0]}};
  operands.in[0] = step.in[0];
  operands.in.push_back(step.in.back());
  return operands;
}

Operands operands_of(const TwoPassInfo& rule, Pass pass, const Operands& step) {
  switch (pass) {
    case Pass::state:
      return of_state(rule, step);
    case Pass::parameter:
      return of_parameter(step);
    case Pass::gradient:
      return of_gradient(rule, step);
  }
  return {};
}

// The struct of a pass, and the pass in names of kernels.
struct Words {
  const char* driver;
  const char* name;
};

Words words_of(Pass pass) {
  switch (pass) {
    case Pass::state:
      return {"UpdateState", "_state_"};
    case Pass::parameter:
      return {"Parameter", "_parameter_"};
    case Pass::gradient:
      return {"FinishWithGradient", "_finish_"};
  }
  return {};
}

std::string shared_files(std::string_view rule) {
  return files_of(gpu::header_of(texts(), rule)) +
         gpu::joined(
             texts(),
             {"passes.h", "two_pass_tables.h", "scaling.h", "sums.metal.h", "two_pass.metal.h"});
}

// The driver with the formats of the parameter, the slots that it reads, the gradient if there is
// one, and the results.
std::string driver_of(const PassKernel& kernel) {
  const auto& [rule, walk, scaling, capacity, operands, _, __, ___] = kernel.update;
  const bool gradient = kernel.pass != Pass::parameter;
  const auto outputs = static_cast<int>(operands.out.size());
  const int state = static_cast<int>(operands.in.size()) - (gradient ? 2 : 1);
  return words_of(kernel.pass).driver + std::string("<") + std::string(rule) + ", " +
         format_of(operands.in[0]) + ", " + list_of(&operands.in[1], state) + ", " +
         (gradient ? format_of(operands.in.back()) + std::string(", ") +
                         list_of(operands.out.data(), outputs)
                   : format_of(operands.out[0])) +
         ", mlx_opt::Scaling::" + gpu::name_of(scaling) + ">";
}

std::string walk_of(Walk walk) {
  switch (walk) {
    case Walk::flat:
      return "flat(at, arguments.tensors[which], ";
    case Walk::transposed:
      return "transposed(at, arguments, ";
    case Walk::strided:
      return "strided<uint>(at, arguments, ";
    case Walk::strided_long:
      return "strided<ulong>(at, arguments, ";
  }
  return "";
}

std::string kernel_of(const PassKernel& kernel) {
  const UpdateKernel& update = kernel.update;
  const Operands& operands = update.operands;
  const auto inputs = static_cast<int>(operands.in.size());
  const bool first = kernel.pass == Pass::state;
  const bool gradient = kernel.pass != Pass::parameter;
  const auto at = [&](int tensor) {
    return "{{" + inputs_of(tensor, inputs) + "}, {" + outputs_of(operands, tensor) + "}}";
  };
  std::string text =
      beginning_of(name(kernel), "constant", arguments_of(update, gradient ? inputs : 1), threads) +
      (first ? "    device float* sums" + slot(sums_slot)
             : "    device const float* rates" + slot(rates_slot)) +
      parameters_of(operands, update.capacity, pass_operands_slot) +
      "    uint group [[threadgroup_position_in_grid]],\n"
      "    uint index [[thread_index_in_threadgroup]]) {\n"
      "  using namespace mlx_opt::MLX_OPT_LEVEL;\n  using Step = " +
      driver_of(kernel) + ";\n";
  const bool stages = first || update.walk == Walk::transposed;
  if (stages) {
    const unsigned staged = update.walk == Walk::transposed ? tile * (tile + 1) : threads;
    text += "  threadgroup float staged[" + std::to_string(staged) + "];\n";
  }
  const char* which = update.walk == Walk::flat ? " + which * Step::Of::rates" : "";
  return text + choice_of(update, at) + "  Step::" + walk_of(update.walk) + "group_uniforms, " +
         (first ? "sums" : std::string("rates") + which) + ", group, index" +
         (stages ? ", staged" : "") + ");\n}\n";
}

std::string kernel_of(const RatesKernel& kernel) {
  const std::string rule(kernel.rule);
  return beginning_of(name(kernel), "constant", "Share*", threads) +
         "    device const float* sums" + slot(sums_slot) + "    device float* rates" +
         slot(new_rates_slot) +
         "    uint group [[threadgroup_position_in_grid]],\n"
         "    uint index [[thread_index_in_threadgroup]]) {\n"
         "  using namespace mlx_opt::MLX_OPT_LEVEL;\n"
         "  threadgroup float staged[" +
         std::to_string(threads) + "];\n  using Step = TensorRates<" + rule +
         ">;\n  Step::run(arguments[group], group_uniforms, sums, rates + group * Step::Of::rates, "
         "index, "
         "staged);\n}\n";
}

} // namespace

PassKernel pass_of(const TwoPassInfo& rule, Pass pass, UpdateKernel step, Walk walk) {
  step.walk = walk;
  step.operands = operands_of(rule, pass, step.operands);
  if (pass == Pass::parameter && step.scaling == Scaling::always) {
    step.scaling = Scaling::none; // there is no gradient to scale
  }
  return {pass, std::move(step)};
}

int max_per_pass(const TwoPassInfo& rule, const Operands& step) {
  const auto max_of = [&](Pass pass) {
    return max_per_pack(operands_of(rule, pass, step), pass_operands_slot);
  };
  return std::min(max_of(Pass::state), max_of(second_pass_of(rule)));
}

std::string name(const PassKernel& kernel) {
  return versioned(
      std::string(kernel.update.rule) + words_of(kernel.pass).name + words_of(kernel.update));
}

std::string name(const RatesKernel& kernel) {
  return versioned(std::string(kernel.rule) + "_rates");
}

std::string source(const PassKernel& kernel) {
  std::string files = shared_files(kernel.update.rule);
  if (kernel.pass != Pass::parameter) {
    files += texts().at("state_pass.metal.h");
  }
  if (kernel.pass == Pass::gradient) {
    files += texts().at("gradient_pass.metal.h");
  }
  return program_of(files, kernel_of(kernel));
}

std::string source(const RatesKernel& kernel) {
  return program_of(shared_files(kernel.rule), kernel_of(kernel));
}

} // namespace mlx_opt::metal
