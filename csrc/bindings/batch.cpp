#include "bindings/batch.h"

#include <nanobind/stl/string.h>

#include "bindings/tree.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/types/layout.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt::python {
namespace {

std::string prefix(const Path* path) {
  const std::string text = path ? path->text() : "";
  return text.empty() ? "" : text + ": ";
}

std::string type_of(nb::handle object) {
  return nb::cast<std::string>(nb::str(object.type().attr("__name__")));
}

nb::object entry(nb::handle tree, nb::handle key, const char* what, const Path& path) {
  PyObject* item = PyObject_GetItem(tree.ptr(), key.ptr());
  if (item) {
    return nb::steal(item);
  }
  nb::python_error cause;
  if (is_container(tree) && !cause.matches(PyExc_LookupError)) {
    throw cause;
  }
  const std::string message = path.text() + ": there is a gradient but no " + what;
  throw nb::key_error(message.c_str());
}

// Before init the state may end anywhere above the leaves.
nb::object entry_or_none(nb::handle tree, nb::handle key) {
  PyObject* item = tree.is_none() ? nullptr : PyObject_GetItem(tree.ptr(), key.ptr());
  if (!item) {
    PyErr_Clear();
    return nb::none();
  }
  return nb::steal(item);
}

} // namespace

std::string Path::text() const {
  const std::string name = nb::cast<std::string>(nb::str(key));
  return parent ? parent->text() + "." + name : name;
}

Batch::Batch(
    nb::object gradients,
    nb::handle parameters,
    nb::handle state,
    std::vector<nb::str> moments,
    bool initialized,
    std::vector<nb::str> factored)
    : gradients_(std::move(gradients)),
      moments_(std::move(moments)),
      factored_moments_(std::move(factored)),
      factors_(!factored_moments_.empty()),
      initialized_(initialized),
      available_(mlx_opt::available(mx::default_device())) {
  if (factors_) {
    factored_moments_.insert(factored_moments_.end(), moments_.begin() + 1, moments_.end());
  }
  collect(gradients_, parameters, state, nb::none(), nullptr);
}

void Batch::collect(
    nb::handle gradients,
    nb::handle parameters,
    nb::handle state,
    nb::handle container,
    const Path* path) {
  if (!is_container(gradients)) {
    collect_leaf(gradients, parameters, state, container, path);
    return;
  }
  const Recursion recursion;
  for_each_item(gradients, [&](nb::object key, nb::handle child) {
    const Path here{path, key};
    nb::object parameter = entry(parameters, key, "parameter", here);
    nb::object child_state =
        initialized_ ? entry(state, key, "optimizer state", here) : entry_or_none(state, key);
    collect(child, parameter, child_state, parameters, &here);
  });
}

void Batch::collect_leaf(
    nb::handle gradient,
    nb::handle parameter,
    nb::handle state,
    nb::handle container,
    const Path* path) {
  for (auto [object, what] : {std::pair{gradient, "gradient"}, {parameter, "parameter"}}) {
    if (!is_array(object)) {
      const std::string message =
          prefix(path) + what + " must be an mlx.core.array, got " + type_of(object);
      throw nb::type_error(message.c_str());
    }
  }
  const mx::array& g = array_of(gradient);
  const mx::array& w = array_of(parameter);
  if (g.shape() != w.shape()) {
    const std::string message =
        prefix(path) + "gradient " + shape_text(g.shape()) + ", parameter " + shape_text(w.shape());
    throw nb::value_error(message.c_str());
  }
  bool fused = available_ && is_storage(g.dtype()) && is_storage(w.dtype());
  const bool factored = factors_ && w.ndim() >= 2;
  fused &= collect_moments(state, w, factored, path);
  leaves_.push_back(
      {nb::borrow(gradient),
       nb::borrow(parameter),
       nb::borrow(state),
       nb::borrow(container),
       path ? nb::borrow(path->key) : nb::none(),
       factored,
       fused});
}

const std::vector<nb::str>& Batch::moments_of(bool factored) const {
  return factored ? factored_moments_ : moments_;
}

// Whether all moments are there and of a storage dtype.
bool Batch::collect_moments(
    nb::handle state, const mx::array& parameter, bool factored, const Path* path) {
  bool fused = true;
  const auto& names = moments_of(factored);
  for (size_t i = 0; i < names.size(); ++i) {
    const nb::str& name = names[i];
    PyObject* moment =
        PyDict_Check(state.ptr()) ? PyDict_GetItem(state.ptr(), name.ptr()) : nullptr;
    if (!moment && !initialized_) {
      return false;
    }
    if (!moment || !is_array(moment)) {
      const std::string message =
          prefix(path) + "the optimizer state has no array \"" + name.c_str() + "\"";
      throw nb::key_error(message.c_str());
    }
    const mx::array& m = array_of(moment);
    const mx::Shape expected = state_shape(parameter.shape(), factored, i);
    if (m.shape() != expected) {
      const std::string of = expected == parameter.shape() ? ", parameter " : ", expected ";
      const std::string message = prefix(path) + "state \"" + name.c_str() + "\" " +
                                  shape_text(m.shape()) + of + shape_text(expected);
      throw nb::value_error(message.c_str());
    }
    fused &= is_storage(m.dtype());
  }
  return fused;
}

} // namespace mlx_opt::python
