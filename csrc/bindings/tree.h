// Python's trees: dicts, lists and tuples of arrays.
#pragma once

#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include "mlx/array.h"

namespace mlx_opt::python {

namespace mx = mlx::core;
namespace nb = nanobind;

/// True for an mlx.core.array whose `__init__` has run.
inline bool is_array(nb::handle object) {
  static const nb::handle type = nb::type<mx::array>();
  return (object.type().is(type) || nb::isinstance<mx::array>(object)) && nb::inst_ready(object);
}

inline mx::array& array_of(nb::handle object) {
  return *nb::inst_ptr<mx::array>(object);
}

// Guards against a tree that is deeper than the stack or contains itself.
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

struct Item {
  nb::object key;
  nb::object child;
};

/// True for containers whose items can be looked up without running Python code.
inline bool is_plain(nb::handle tree) {
  return PyDict_CheckExact(tree.ptr()) || PyList_CheckExact(tree.ptr()) ||
         PyTuple_CheckExact(tree.ptr());
}

/// A snapshot of a container's items. The caller may run any Python code while it visits them,
/// because the tree may change meanwhile. Runs no Python code itself if the tree is plain.
std::vector<Item> items_of(nb::handle tree);

/// True if `container[key]` runs no Python code of a subclass or of the key.
bool has_own_lookup(nb::handle container, nb::handle key);

/// A leaf's path in the tree: one link on the stack for each level.
struct Path {
  const Path* parent;
  nb::handle key;

  std::string text() const;
};

/// The path and ": ", or an empty text for a tree that is a leaf.
std::string prefix(const Path* path);

std::string class_name(nb::handle object);

/// True if `container[key] = value` runs no Python code of a subclass.
bool has_own_assignment(nb::handle container);

/// The container's own item for a key, looked up without running Python code; null if there is
/// none.
PyObject* stored(nb::handle container, nb::handle key);

/// A dict's own item for a key, borrowed; null if there is none, or if a comparison with another
/// key raises.
inline PyObject* dict_item(nb::handle dict, nb::handle key) {
  PyObject* item = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (!item && PyErr_Occurred()) {
    PyErr_Clear();
  }
  return item;
}

/// True if `assignment`, a tree of dicts by the keys of `tree`, has an int for each leaf.
bool is_assigned(nb::handle assignment, nb::handle tree);

/// Stores a value under a key without running Python code.
void store(nb::handle container, nb::handle key, nb::handle value);

} // namespace mlx_opt::python
