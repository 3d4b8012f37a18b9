// Trees as Python has them: dicts, lists and tuples, with arrays for leaves.
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

struct Item {
  nb::object key;
  nb::object child;
};

/// True for the containers whose items are looked up without running Python.
inline bool is_plain(nb::handle tree) {
  return PyDict_CheckExact(tree.ptr()) || PyList_CheckExact(tree.ptr()) ||
         PyTuple_CheckExact(tree.ptr());
}

/// The items of a container as they are now. The caller may run any Python while it visits them:
/// the tree may change meanwhile. Runs none itself if the tree is plain.
std::vector<Item> items_of(nb::handle tree);

/// True if `container[key]` runs no Python of a subclass or of the key.
bool has_own_lookup(nb::handle container, nb::handle key);

/// Where in the tree a leaf is; a link on the stack for each level.
struct Path {
  const Path* parent;
  nb::handle key;

  std::string text() const;
};

/// The path and ": ", or nothing for a tree that is a leaf.
std::string prefix(const Path* path);

std::string class_name(nb::handle object);

/// True if `container[key] = value` runs no Python of a subclass.
bool has_own_assignment(nb::handle container);

/// What the container itself has under a key, without running Python; null if there is nothing.
PyObject* stored(nb::handle container, nb::handle key);

/// The value that a dict itself has for a key, borrowed; null if there is none, or if a comparison
/// with another key raises.
inline PyObject* dict_item(nb::handle dict, nb::handle key) {
  PyObject* item = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (!item && PyErr_Occurred()) {
    PyErr_Clear();
  }
  return item;
}

/// Puts a value there, without running Python.
void store(nb::handle container, nb::handle key, nb::handle value);

} // namespace mlx_opt::python
