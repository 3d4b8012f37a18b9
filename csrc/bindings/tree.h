// Trees as Python has them: dicts, lists and tuples, with arrays for leaves.
#pragma once

#include <nanobind/nanobind.h>

#include "mlx/array.h"

namespace mlx_opt::python {

namespace mx = mlx::core;
namespace nb = nanobind;

inline bool is_array(nb::handle object) {
  static const nb::handle type = nb::type<mx::array>();
  return object.type().is(type) || nb::isinstance<mx::array>(object);
}

inline const mx::array& array_of(nb::handle object) {
  return *nb::inst_ptr<mx::array>(object);
}

// A tree may be deeper than the stack, or contain itself.
struct Recursion {
  Recursion() {
    if (Py_EnterRecursiveCall(" in a tree of gradients")) {
      throw nb::python_error();
    }
  }
  ~Recursion() {
    Py_LeaveRecursiveCall();
  }
};

inline bool is_sequence(nb::handle tree) {
  return PyList_Check(tree.ptr()) || PyTuple_Check(tree.ptr());
}

inline bool is_container(nb::handle tree) {
  return PyDict_Check(tree.ptr()) || is_sequence(tree);
}

template <typename Visit>
void for_each_item(nb::handle tree, Visit&& visit) {
  if (PyDict_Check(tree.ptr())) {
    for (auto [key, child] : nb::borrow<nb::dict>(tree)) {
      visit(nb::object(nb::borrow(key)), child);
    }
  } else {
    const Py_ssize_t size = PySequence_Size(tree.ptr());
    for (Py_ssize_t i = 0; i < size; ++i) {
      visit(nb::object(nb::int_(i)), nb::steal(PySequence_GetItem(tree.ptr(), i)));
    }
  }
}

} // namespace mlx_opt::python
