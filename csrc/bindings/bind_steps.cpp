#include "bindings/bind_steps.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/step.h"
#include "mlx_opt/algorithms/muon.h"

namespace mlx_opt::python {
namespace {

using namespace nb::literals;

[[noreturn]] void refuse(const std::string& name, const char* expected, nb::handle given) {
  const std::string message = name + ": expected " + expected + ", got " + class_name(given);
  throw nb::type_error(message.c_str());
}

// A number, or what can be made one: a NumPy scalar.
double number_from(const std::string& name, nb::handle given, const char* expected) {
  if (PyFloat_Check(given.ptr()) || PyLong_Check(given.ptr())) {
    const double value = PyFloat_AsDouble(given.ptr());
    if (value == -1.0 && PyErr_Occurred()) {
      throw nb::python_error();
    }
    return value;
  }
  PyObject* number = PyUnicode_Check(given.ptr()) ? nullptr : PyNumber_Float(given.ptr());
  if (!number) {
    PyErr_Clear();
    refuse(name, expected, given);
  }
  return PyFloat_AsDouble(nb::steal(number).ptr());
}

constexpr const char* number_or_array = "a number or a 0-d mlx.core.array";

Scalar scalar_from(const std::string& name, nb::handle given) {
  if (is_array(given)) {
    return array_of(given);
  }
  return number_from(name, given, number_or_array);
}

mx::array rate_from(nb::handle given) {
  if (given.is_none()) {
    return mx::array(0.0f);
  }
  if (!is_array(given)) {
    refuse("learning_rate", "a 0-d mlx.core.array", given);
  }
  return array_of(given);
}

mx::array step_from(nb::handle given) {
  if (is_array(given)) {
    return array_of(given);
  }
  const double number = number_from("step", given, number_or_array);
  if (!(number >= 0.0 && number < 1e18)) {
    throw nb::value_error("step: expected 0 or more");
  }
  return mx::array(static_cast<uint64_t>(number));
}

Settled settled_from(
    const Program& program,
    const std::vector<nb::object>& hypers,
    nb::handle learning_rate,
    nb::handle step) {
  const auto names = hypers_of(program.rule());
  if (hypers.size() != names.size()) {
    throw nb::value_error("a hyperparameter is missing");
  }
  std::vector<Scalar> scalars;
  for (size_t i = 0; i < hypers.size(); ++i) {
    scalars.push_back(scalar_from(names[i].name, hypers[i]));
  }
  return {{std::move(scalars), rate_from(learning_rate), step_from(step)}, std::nullopt};
}

nb::dict description(Rule rule) {
  constexpr const char* settings[] = {"positive", "off", "on"};
  constexpr const char* extents[] = {"elements", "rows", "columns"};
  constexpr const char* owners[] = {"all", "matrices", "vectors"};
  constexpr const char* formats[] = {"promoted", "float32"};
  constexpr const char* ranges[] = {
      "any", "not_negative", "positive", "not_positive", "below_one", "flag"};
  nb::list hypers, slots, conditions;
  for (const HyperInfo& hyper : hypers_of(rule)) {
    hypers.append(
        nb::make_tuple(hyper.name, hyper.standard, ranges[static_cast<int>(hyper.range)]));
  }
  for (const SlotInfo& slot : slots_of(rule)) {
    nb::object option = slot.option ? nb::object(nb::str(slot.option)) : nb::none();
    slots.append(nb::make_tuple(
        slot.name,
        extents[static_cast<int>(slot.extent)],
        owners[static_cast<int>(slot.owner)],
        option,
        slot.idle,
        formats[static_cast<int>(slot.format)]));
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
  const double number = number_from(full_name, value, number_or_array);
  for (Rule rule : rules_of(optimizer)) {
    for (const HyperInfo& hyper : hypers_of(rule)) {
      const std::string problem = hyper.name == name ? range_problem(hyper, number) : "";
      if (!problem.empty()) {
        throw nb::value_error((full_name + ": " + problem).c_str());
      }
    }
  }
}

std::vector<mx::Dtype> result_dtypes(
    const Program& program,
    const std::vector<nb::object>& hypers,
    const std::vector<mx::array>& operands) {
  const Settled settled = settled_from(program, hypers, nb::none(), nb::int_(1));
  std::vector<const mx::array*> pointers;
  for (const mx::array& x : operands) {
    pointers.push_back(&x);
  }
  const Slots& slots = program.slots(program.kind_of(operands.at(0).ndim()));
  if (operands.size() != slots.size() + 2) {
    throw nb::value_error("an operand is missing");
  }
  std::vector<mx::Dtype> dtypes;
  push_dtypes(slots, pointers.data(), is_coupled(program.rule(), settled.scalars.hypers), dtypes);
  return dtypes;
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
    bool decoupled_weight_decay,
    size_t stack) {
  Muon options;
  options.ns_steps = steps;
  options.ns_dtype = dtype;
  options.ns_coefficients = coefficients;
  options.adjust_lr = adjust_lr == "original" ? AdjustLr::original : AdjustLr::match_rms_adamw;
  options.decoupled_weight_decay = decoupled_weight_decay;
  return muon_program(options, stack);
}

} // namespace

void bind_steps(nb::module_& m) {
  nb::class_<Program>(m, "Program", "A rule with its options settled.");
  m.def(
      "program",
      program,
      "rule"_a,
      "with_options"_a = false,
      R"(The program of a rule.

Args:
    rule: Its name.
    with_options: Whether the state slots that an option brings are there.

Raises:
    ValueError: There is no such rule.)");
  m.def(
      "muon_program",
      muon,
      "steps"_a,
      "dtype"_a.none(),
      "coefficients"_a,
      "adjust_lr"_a,
      "decoupled_weight_decay"_a,
      "stack"_a,
      R"(The program of Muon with these options, which :class:`mlx_opt.Muon` explains, and ``stack`` as
:func:`orthogonalized` has it.

Raises:
    ValueError: An option does not fit; the message names it.)");
  m.def(
      "descriptions",
      descriptions,
      "optimizer"_a,
      R"(What the rules that serve an optimizer say about themselves.

Returns:
    A dict for each, in the order in which their conditions are to be asked: ``rule``,
    ``optimizer``; ``hypers``, each (name, default, range); ``slots``, each (name, extent, owner,
    option, idle, format); ``conditions``, each (option, setting).)");
  m.def("optimizers", optimizers, "The names of the optimizers that the rules serve.");
  m.def(
      "check_hyper",
      check_hyper,
      "optimizer"_a,
      "name"_a,
      "value"_a.none(),
      R"(Checks a value of a hyperparameter; any array will do.

Args:
    optimizer: The name of an optimizer that has it.
    name: As the rule's description gives it.

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
      "result_dtypes",
      result_dtypes,
      "program"_a,
      "hypers"_a,
      "operands"_a,
      R"(The dtypes of what a step makes of a tensor: the parameter's, then those of its slots.

Args:
    program: What updates it.
    hypers: Its hyperparameters in order.
    operands: The parameter, its slots and the gradient, each float32, float16 or bfloat16.)");

  nb::class_<Part>(
      m,
      "Part",
      R"(The leaves of a tree of gradients with their parameters and states, and the scalars of a step.

The leaves are found and checked by the first method that needs them, which changes nothing.

Args:
    program: What updates the leaves.
    hypers: Its hyperparameters in order, each a number or a 0-d array.
    learning_rate: A 0-d array, or None if the program does not read it.
    step: The number of this step, from 1.
    formula: Called as ``formula(gradient, parameter, state)`` for leaves that the primitives do
        not serve: other dtypes, other devices, and under a gradient transformation. It returns the
        new parameter, changes ``state``, which is a copy.
    gradients: A tree of arrays.
    parameters: A tree that has a leaf of the same shape for each gradient.
    state: A tree that has a dict of arrays for each gradient.
    initialized: Whether every leaf must have state.
    assigned: Whether the results go into the tree of parameters.
    fused: Whether the primitives serve the leaves that they can.

Raises:
    KeyError: A gradient has no parameter or no state.
    TypeError: A gradient, a parameter or a scalar is not what it must be.
    ValueError: The shapes of a leaf differ.)")
      .def(
          "__init__",
          [](Part* self,
             const Program& program,
             const std::vector<nb::object>& hypers,
             nb::handle learning_rate,
             nb::handle step,
             nb::object formula,
             nb::object gradients,
             nb::object parameters,
             nb::object state,
             bool initialized,
             bool assigned,
             bool fused) {
            auto settled = settled_from(program, hypers, learning_rate, step);
            new (self) Part(
                program,
                std::move(settled),
                std::move(formula),
                std::move(gradients),
                std::move(parameters),
                std::move(state),
                initialized,
                assigned,
                fused);
          },
          "program"_a,
          "hypers"_a,
          "learning_rate"_a.none(),
          "step"_a,
          "formula"_a.none(),
          "gradients"_a,
          "parameters"_a,
          "state"_a.none(),
          "initialized"_a = true,
          "assigned"_a = false,
          "fused"_a = true)
      .def("collect", &Part::collect, "Finds the leaves and checks them; changes nothing.")
      .def(
          "clip",
          [](Part& self, const mx::array& scale, bool skip_nonfinite, nb::object formula) {
            self.clip({scale, skip_nonfinite}, std::move(formula));
          },
          "scale"_a,
          "skip_nonfinite"_a,
          "formula"_a,
          R"(Sets what the gradients are multiplied with.

Args:
    scale: A 0-d array that each gradient is multiplied with in float32 before the rule sees it.
    skip_nonfinite: Whether everything stays as it is where ``scale`` is not finite.
    formula: What takes the place of the part's formula; it has to apply ``scale`` itself.)")
      .def("stage", &Part::stage, "Makes the results, lazily. Changes nothing.")
      .def("tree", &Part::tree, "The staged parameters, with the structure of the gradients.")
      .def("commit", &Part::commit, "Puts the staged slots into the state.");

  m.def(
      "update",
      update,
      "parts"_a,
      "counters"_a,
      R"(Updates the parameters and the states of all parts.

Overwrites them where no other reference can observe it, else replaces them. An exception has
changed nothing.

Args:
    parts: The parts of a step, made with ``assigned=True``.
    counters: Arrays that are evaluated with a step that runs at once; the first, the number of the
        step, may be left an equal, lazy one.

Returns:
    Whether it did. If not, the model has a ``__setitem__`` of its own, and nothing has changed.)");
  m.def(
      "evaluate_chains",
      evaluate_chains,
      "parts"_a,
      "counters"_a,
      "Queues those arrays, or those that they are made of, whose inputs are evaluated.");
}

} // namespace mlx_opt::python
