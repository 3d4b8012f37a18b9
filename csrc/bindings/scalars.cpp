#include "bindings/scalars.h"

#include <algorithm>
#include <cmath>

#include <nanobind/stl/string.h>

namespace mlx_opt::python {
namespace {

constexpr const char* number_or_array = "a number or a 0-d mlx.core.array";

[[noreturn]] void refuse(const std::string& name, const char* expected, nb::handle given) {
  const std::string message = name + ": expected " + expected + ", got " + class_name(given);
  throw nb::type_error(message.c_str());
}

} // namespace

double number_from(const std::string& name, nb::handle given) {
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
    refuse(name, number_or_array, given);
  }
  return PyFloat_AsDouble(nb::steal(number).ptr());
}

double hyper_from(const HyperInfo& hyper, const std::string& name, nb::handle given) {
  if (hyper.range != Range::decay_kind) {
    return number_from(name, given);
  }
  const std::string kind = PyUnicode_Check(given.ptr()) ? nb::cast<std::string>(given) : "";
  const auto found = std::find(std::begin(decay_kinds), std::end(decay_kinds), kind);
  if (found == std::end(decay_kinds)) {
    const std::string message =
        name + ": expected \"coupled\", \"decoupled\", \"independent\" or \"corrected\", got " +
        nb::cast<std::string>(nb::repr(given));
    throw nb::value_error(message.c_str());
  }
  return static_cast<double>(found - std::begin(decay_kinds));
}

namespace {

Scalar scalar_from(const HyperInfo& hyper, nb::handle given) {
  if (is_array(given)) {
    return array_of(given);
  }
  return hyper_from(hyper, hyper.name, given);
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

} // namespace

mx::array step_from(nb::handle given) {
  if (is_array(given)) {
    return array_of(given);
  }
  const double number = number_from("step", given);
  if (!(number >= 0.0 && number < 1e18)) {
    throw nb::value_error("step: expected 0 or more");
  }
  if (number != std::floor(number)) {
    throw nb::value_error("step: expected a whole number");
  }
  return mx::array(static_cast<uint64_t>(number));
}

GroupScalars scalars_from(
    const Program& program,
    const std::vector<nb::object>& hypers,
    nb::handle learning_rate,
    const mx::array& step) {
  static constexpr HyperInfo ema_rate{"ema_decay", 0.0};
  const auto infos = hypers_of(program.rule());
  if (hypers.size() != program.hypers()) {
    throw nb::value_error("a hyperparameter is missing");
  }
  std::vector<Scalar> values;
  for (size_t i = 0; i < hypers.size(); ++i) {
    values.push_back(scalar_from(i < infos.size() ? infos[i] : ema_rate, hypers[i]));
  }
  return {std::move(values), rate_from(learning_rate), step};
}

} // namespace mlx_opt::python
