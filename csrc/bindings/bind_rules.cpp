#include "bindings/bind_rules.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/scalars.h"
#include "mlx_opt/algorithms/muon.h"
#include "mlx_opt/step/kept.h"

namespace mlx_opt::python {
namespace {

using namespace nb::literals;

nb::dict description(Rule rule) {
  constexpr const char* settings[] = {"positive", "off", "on", "decoupled"};
  constexpr const char* extents[] = {"elements", "rows", "columns"};
  constexpr const char* owners[] = {"all", "matrices", "vectors"};
  constexpr const char* formats[] = {"promoted", "float32"};
  constexpr const char* begins[] = {"zeros", "unset"};
  constexpr const char* ranges[] = {
      "any", "not_negative", "positive", "not_positive", "below_one", "flag", "decay_kind"};
  nb::list hypers, slots, conditions, inputs;
  for (std::string_view name : kept_inputs(rule)) {
    inputs.append(nb::str(name.data(), name.size()));
  }
  for (const HyperInfo& hyper : hypers_of(rule)) {
    nb::object standard = nb::float_(hyper.standard);
    if (hyper.range == Range::decay_kind) {
      standard = nb::str(decay_kinds[static_cast<int>(hyper.standard)]);
    }
    hypers.append(
        nb::make_tuple(hyper.name, standard, ranges[static_cast<int>(hyper.range)], hyper.kept));
  }
  for (const SlotInfo& slot : slots_of(rule)) {
    nb::object option = slot.option ? nb::object(nb::str(slot.option)) : nb::none();
    slots.append(nb::make_tuple(
        slot.name,
        extents[static_cast<int>(slot.extent)],
        owners[static_cast<int>(slot.owner)],
        option,
        slot.idle,
        formats[static_cast<int>(slot.format)],
        begins[static_cast<int>(slot.begin)]));
  }
  for (const Condition& condition : conditions_of(rule)) {
    conditions.append(
        nb::make_tuple(condition.option, settings[static_cast<int>(condition.setting)]));
  }
  nb::dict result;
  const std::string_view name = name_of(rule);
  result["rule"] = nb::str(name.data(), name.size());
  result["optimizer"] = description_of(rule).optimizer;
  result["hypers"] = hypers;
  result["slots"] = slots;
  result["conditions"] = conditions;
  result["kept_inputs"] = inputs;
  result["elementwise"] = is_elementwise(rule);
  return result;
}

std::vector<std::string> optimizers() {
  std::vector<std::string> names;
  for (std::string_view optimizer : all_optimizers()) {
    names.emplace_back(optimizer);
  }
  return names;
}

void check_hyper(const std::string& optimizer, const std::string& name, nb::handle value) {
  if (is_array(value)) {
    return;
  }
  const std::string full_name = optimizer + ": " + name;
  for (Rule rule : rules_of(optimizer)) {
    for (const HyperInfo& hyper : hypers_of(rule)) {
      if (hyper.name == name) {
        const std::string problem = range_problem(hyper, hyper_from(hyper, full_name, value));
        if (!problem.empty()) {
          throw nb::value_error((full_name + ": " + problem).c_str());
        }
        return;
      }
    }
  }
  number_from(full_name, value); // an option that is no hyperparameter
}

std::vector<mx::Dtype> result_dtypes(
    const Program& program,
    const std::vector<nb::object>& hypers,
    const std::vector<mx::array>& operands) {
  const GroupScalars scalars =
      scalars_from(program.rule(), hypers, nb::none(), mx::array(1, mx::uint64));
  std::vector<const mx::array*> pointers;
  for (const mx::array& x : operands) {
    pointers.push_back(&x);
  }
  const Slots& slots = program.slots(program.kind_of(operands.at(0).ndim()));
  if (operands.size() != slots.size() + 2) {
    throw nb::value_error("an operand is missing");
  }
  std::vector<mx::Dtype> dtypes;
  push_dtypes(slots, pointers.data(), is_coupled(program.rule(), scalars.hypers), dtypes);
  return dtypes;
}

// Every step calls this, and most rules keep no number, so the list is read only for those that do.
nb::dict next_kept(const Program& program, nb::list hypers, nb::handle step) {
  nb::dict kept;
  const Rule rule = program.rule();
  if (const HyperInfo* info = kept_by(rule)) {
    const auto values = nb::cast<std::vector<nb::object>>(hypers);
    const GroupScalars scalars = scalars_from(rule, values, nb::none(), step_from(step));
    kept[info->name] = *mlx_opt::next_kept(rule, scalars.hypers, scalars.step);
  }
  return kept;
}

nb::list descriptions(const std::string& optimizer) {
  nb::list forms;
  for (Rule rule : rules_of(optimizer)) {
    forms.append(description(rule));
  }
  return forms;
}

Program program(const std::string& rule, bool with_options) {
  if (const auto found = find_rule(rule)) {
    return Program(*found, with_options);
  }
  throw nb::value_error(("there is no rule \"" + rule + "\"").c_str());
}

Program muon(
    int steps,
    std::optional<mx::Dtype> dtype,
    const Coefficients& coefficients,
    const std::string& adjust_lr,
    size_t stack) {
  Muon options;
  options.ns_steps = steps;
  options.ns_dtype = dtype;
  options.ns_coefficients = coefficients;
  options.adjust_lr = adjust_lr == "original" ? AdjustLr::original : AdjustLr::match_rms_adamw;
  return muon_program(options, stack);
}

} // namespace

void bind_rules(nb::module_& m) {
  nb::class_<Program>(m, "Program", "A rule with its options settled.")
      .def_prop_ro(
          "rule", [](const Program& program) { return std::string(name_of(program.rule())); });
  m.def(
      "program",
      program,
      "rule"_a,
      "with_options"_a = false,
      R"(The program of a rule.

Args:
    rule: Its name.
    with_options: True if optional state slots are present.

Raises:
    ValueError: There is no such rule.)");
  m.def(
      "muon_program",
      muon,
      "steps"_a,
      "dtype"_a.none(),
      "coefficients"_a,
      "adjust_lr"_a,
      "stack"_a,
      R"(The program of Muon with these options, which :class:`mlx_opt.Muon` explains, and ``stack`` as
:func:`orthogonalized` has it.

Raises:
    ValueError: An option does not fit; the message names it.)");
  m.def(
      "descriptions",
      descriptions,
      "optimizer"_a,
      R"(The descriptions of the rules that serve an optimizer.

Returns:
    A dict for each, in the order in which their conditions are to be checked: ``rule``,
    ``optimizer``; ``hypers``, each (name, default, range, kept); ``slots``, each (name, extent, owner,
    option, idle, format, begin); ``conditions``, each (option, setting); ``kept_inputs``, the
    names of the ``hypers`` on which the number depends that the rule keeps; ``elementwise``, true
    if the update of an element depends only on that element's gradient and state.)");
  m.def("optimizers", optimizers, "The names of the optimizers that the rules serve.");
  m.def(
      "check_hyper",
      check_hyper,
      "optimizer"_a,
      "name"_a,
      "value"_a.none(),
      R"(Checks a value of a hyperparameter; arrays are not checked.

Args:
    optimizer: The name of an optimizer that has it.
    name: Its name in the rule's description.

Raises:
    TypeError: The value is not a number.
    ValueError: It is out of the hyperparameter's range.)");
  m.def(
      "initial_state",
      [](const Program& program, const mx::array& parameter) {
        nb::dict state;
        const auto arrays = initial_state(program, parameter);
        size_t next = 0;
        for (const SlotInfo* slot : program.state_slots(parameter.ndim())) {
          state[slot->name] = arrays[next++];
        }
        return state;
      },
      "program"_a,
      "parameter"_a,
      "The state of a parameter before the first step, a dict of arrays.");
  m.def(
      "next_kept",
      next_kept,
      "program"_a,
      "hypers"_a,
      "step"_a,
      R"(The numbers that a rule keeps from step to step, as they are in a step: 0-d arrays by name.

Args:
    program: What updates the parameters.
    hypers: Its hyperparameters in order, the last of which are these numbers as they were before.
    step: The number of the step, from 1.)");
  m.def(
      "result_dtypes",
      result_dtypes,
      "program"_a,
      "hypers"_a,
      "operands"_a,
      R"(The dtypes of a tensor's results: the parameter's, then those of its slots.

Args:
    program: The program that updates it.
    hypers: Its hyperparameters in order.
    operands: The parameter, its slots and the gradient, each float32, float16 or bfloat16.)");
}

} // namespace mlx_opt::python
