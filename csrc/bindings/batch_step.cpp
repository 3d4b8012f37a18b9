// What a Batch does once its leaves are collected.
#include <algorithm>

#include "bindings/batch.h"
#include "bindings/tree.h"
#include "mlx/utils.h"
#include "mlx_opt/algorithms/adafactor.h"
#include "mlx_opt/eager/in_place.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/rules/registry.h"

namespace mlx_opt::python {
namespace {

Rule rule_named(const std::string& name) {
  if (auto rule = find_rule(name)) {
    return *rule;
  }
  throw nb::value_error(("there is no rule \"" + name + "\"").c_str());
}

bool traced(const StepScalars& scalars) {
  std::vector<mx::array> arrays = {scalars.learning_rate, scalars.step};
  if (scalars.scale) {
    arrays.push_back(scalars.scale->value);
  }
  for (const Scalar& hyper : scalars.hypers) {
    if (auto* x = std::get_if<mx::array>(&hyper)) {
      arrays.push_back(*x);
    }
  }
  return traced_for_gradient(arrays);
}

} // namespace

size_t Batch::count_fused(bool factored) const {
  return std::count_if(leaves_.begin(), leaves_.end(), [&](const Leaf& leaf) {
    return leaf.fused && leaf.factored == factored;
  });
}

void Batch::push_operands(bool factored, std::vector<mx::array>& operands) const {
  for (const Leaf& leaf : leaves_) {
    if (!leaf.fused || leaf.factored != factored) {
      continue;
    }
    operands.push_back(array_of(leaf.parameter));
    for (const nb::str& name : moments_of(factored)) {
      operands.push_back(array_of(PyDict_GetItem(leaf.state.ptr(), name.ptr())));
    }
    operands.push_back(array_of(leaf.gradient));
  }
}

std::vector<mx::array> Batch::operands() const {
  std::vector<mx::array> operands;
  operands.reserve(leaves_.size() * (moments_of(factors_).size() + 2) + 8);
  push_operands(false, operands);
  if (factors_) {
    push_operands(true, operands);
  }
  return operands;
}

// Appends pointers, unless an object is not served, or anything but its tree and this batch refers
// to a parameter or moment.
bool Batch::push_unshared(bool factored, std::vector<mx::array*>& operands) const {
  for (const Leaf& leaf : leaves_) {
    if (leaf.factored != factored) {
      continue;
    }
    if (!leaf.fused || Py_REFCNT(leaf.parameter.ptr()) != 2) {
      return false;
    }
    operands.push_back(nb::inst_ptr<mx::array>(leaf.parameter));
    for (const nb::str& name : moments_of(factored)) {
      PyObject* moment = PyDict_GetItem(leaf.state.ptr(), name.ptr());
      if (Py_REFCNT(moment) != 1) {
        return false;
      }
      operands.push_back(nb::inst_ptr<mx::array>(moment));
    }
    operands.push_back(nb::inst_ptr<mx::array>(leaf.gradient));
  }
  return true;
}

// Pointers to all operands, or none if they are shared.
std::vector<mx::array*> Batch::unshared_operands() const {
  std::vector<mx::array*> operands;
  operands.reserve(leaves_.size() * (moments_of(factors_).size() + 2));
  const bool all = push_unshared(false, operands) && (!factors_ || push_unshared(true, operands));
  return all ? operands : std::vector<mx::array*>();
}

bool Batch::overwrite(
    const std::string& rule, const StepScalars& scalars, mx::Stream stream) const {
  const auto operands = unshared_operands();
  if (operands.empty()) {
    return false;
  }
  const auto& [hypers, learning_rate, step, scale] = scalars;
  if (!factors_) {
    return step_in_place(rule_named(rule), operands, hypers, learning_rate, step, stream, scale);
  }
  const bool first_moment = moments_.size() > 1;
  return adafactor_in_place(
      operands, count_fused(false), first_moment, hypers, learning_rate, step, stream, scale);
}

bool Batch::update_in_place(const std::string& rule, const StepScalars& scalars) {
  if (!available_) {
    return false;
  }
  const mx::Stream stream = mx::default_stream(mx::default_device());
  {
    const nb::gil_scoped_release unlocked;
    wait_for_turn(stream);
  }
  if (overwrite(rule, scalars, stream)) {
    return true;
  }
  {
    const nb::gil_scoped_release unlocked;
    if (!wait_for_holder(stream)) {
      return false;
    }
  }
  return overwrite(rule, scalars, stream);
}

std::vector<mx::array> Batch::step(
    const std::string& rule, const StepScalars& scalars, std::vector<mx::array> operands) const {
  const auto& [hypers, learning_rate, step, scale] = scalars;
  if (!factors_) {
    return mlx_opt::step(
        rule_named(rule), std::move(operands), hypers, learning_rate, step, {}, scale);
  }
  const bool first_moment = moments_.size() > 1;
  return mlx_opt::adafactor(
      std::move(operands),
      count_fused(false),
      first_moment,
      hypers,
      learning_rate,
      step,
      {},
      scale);
}

nb::object Batch::update(const std::string& rule, const StepScalars& scalars, nb::handle formula) {
  const auto updated = successors(rule, scalars, formula);
  size_t next = 0;
  return rebuilt(gradients_, updated, next);
}

void Batch::assign(const std::string& rule, const StepScalars& scalars, nb::handle formula) {
  const auto updated = successors(rule, scalars, formula);
  for (size_t i = 0; i < leaves_.size(); ++i) {
    const Leaf& leaf = leaves_[i];
    if (PyObject_SetItem(leaf.container.ptr(), leaf.key.ptr(), updated[i].ptr()) != 0) {
      throw nb::python_error();
    }
  }
}

// Puts the new moments into the state and returns the new parameters, one a leaf.
std::vector<nb::object> Batch::successors(
    const std::string& rule, const StepScalars& scalars, nb::handle formula) {
  std::vector<mx::array> inputs = operands();
  const bool fused = !traced_for_gradient(inputs) && !traced(scalars);
  std::vector<mx::array> outputs;
  if (fused) {
    outputs = step(rule, scalars, std::move(inputs));
  }
  std::vector<nb::object> updated;
  updated.reserve(leaves_.size());
  // The formula may fail, so it goes before anything is put into the state.
  for (const Leaf& leaf : leaves_) {
    const bool served = fused && leaf.fused;
    updated.push_back(served ? nb::object() : formula(leaf.gradient, leaf.parameter, leaf.state));
  }
  const size_t first_factored = fused ? count_fused(false) * (moments_.size() + 1) : 0;
  std::vector<mx::array>::iterator next_output[] = {
      outputs.begin(), outputs.begin() + static_cast<std::ptrdiff_t>(first_factored)};
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (updated[i].is_valid()) {
      continue;
    }
    auto& next = next_output[leaves_[i].factored];
    updated[i] = nb::cast(std::move(*next++));
    for (const nb::str& name : moments_of(leaves_[i].factored)) {
      nb::object moment = nb::cast(std::move(*next++));
      if (PyDict_SetItem(leaves_[i].state.ptr(), name.ptr(), moment.ptr()) != 0) {
        throw nb::python_error();
      }
    }
  }
  return updated;
}

nb::object Batch::rebuilt(
    nb::handle tree, const std::vector<nb::object>& updated, size_t& next) const {
  if (PyDict_Check(tree.ptr())) {
    nb::dict result;
    for_each_item(tree, [&](nb::object key, nb::handle child) {
      result[key] = rebuilt(child, updated, next);
    });
    return result;
  }
  if (!is_sequence(tree)) {
    return updated[next++];
  }
  nb::list result;
  for_each_item(
      tree, [&](nb::object, nb::handle child) { result.append(rebuilt(child, updated, next)); });
  if (PyList_CheckExact(tree.ptr())) {
    return result;
  }
  const nb::handle type = tree.type();
  return nb::hasattr(tree, "_fields") ? type(*result) : type(result);
}

} // namespace mlx_opt::python
