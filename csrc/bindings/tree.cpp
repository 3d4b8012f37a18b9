#include "bindings/tree.h"

#include <algorithm>

#include <nanobind/stl/string.h>

namespace mlx_opt::python {
namespace {

nb::object checked(PyObject* object) {
  if (!object) {
    throw nb::python_error();
  }
  return nb::steal(object);
}

void push_pairs(nb::handle pairs, std::vector<Item>& items) {
  const nb::object list = checked(PySequence_List(pairs.ptr()));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.ptr()); ++i) {
    const nb::object pair = checked(PySequence_Tuple(PyList_GET_ITEM(list.ptr(), i)));
    if (PyTuple_GET_SIZE(pair.ptr()) != 2) {
      throw nb::value_error("items() of a tree must give pairs");
    }
    items.push_back(
        {nb::borrow(PyTuple_GET_ITEM(pair.ptr(), 0)), nb::borrow(PyTuple_GET_ITEM(pair.ptr(), 1))});
  }
}

} // namespace

std::vector<Item> items_of(nb::handle tree) {
  std::vector<Item> items;
  if (PyDict_CheckExact(tree.ptr())) {
    items.reserve(PyDict_GET_SIZE(tree.ptr()));
    PyObject *key, *child;
    for (Py_ssize_t at = 0; PyDict_Next(tree.ptr(), &at, &key, &child);) {
      items.push_back({nb::borrow(key), nb::borrow(child)});
    }
  } else if (PyDict_Check(tree.ptr())) {
    push_pairs(tree.attr("items")(), items);
  } else if (PyTuple_CheckExact(tree.ptr())) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tree.ptr()); ++i) {
      items.push_back({nb::int_(i), nb::borrow(PyTuple_GET_ITEM(tree.ptr(), i))});
    }
  } else {
    const nb::object list =
        PyList_CheckExact(tree.ptr()) ? nb::borrow(tree) : checked(PySequence_List(tree.ptr()));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.ptr()); ++i) {
      items.push_back({nb::int_(i), nb::borrow(PyList_GET_ITEM(list.ptr(), i))});
    }
  }
  return items;
}

bool has_own_lookup(nb::handle container, nb::handle key) {
  const PyMappingMethods* methods = Py_TYPE(container.ptr())->tp_as_mapping;
  const auto lookup = methods ? methods->mp_subscript : nullptr;
  if (PyDict_Check(container.ptr())) {
    return lookup == PyDict_Type.tp_as_mapping->mp_subscript && PyUnicode_CheckExact(key.ptr());
  }
  return is_plain(container) && PyLong_CheckExact(key.ptr());
}

std::string Path::text() const {
  const std::string name = nb::cast<std::string>(nb::str(key));
  return parent ? parent->text() + "." + name : name;
}

std::string prefix(const Path* path) {
  const std::string text = path ? path->text() : "";
  return text.empty() ? "" : text + ": ";
}

std::string class_name(nb::handle object) {
  return nb::cast<std::string>(nb::str(object.type().attr("__name__")));
}

bool has_own_assignment(nb::handle container) {
  const PyMappingMethods* methods = Py_TYPE(container.ptr())->tp_as_mapping;
  const auto assign = methods ? methods->mp_ass_subscript : nullptr;
  return PyDict_Check(container.ptr())   ? assign == PyDict_Type.tp_as_mapping->mp_ass_subscript
         : PyList_Check(container.ptr()) ? assign == PyList_Type.tp_as_mapping->mp_ass_subscript
                                         : false;
}

PyObject* stored(nb::handle container, nb::handle key) {
  if (PyDict_Check(container.ptr())) {
    return PyUnicode_CheckExact(key.ptr()) ? dict_item(container, key) : nullptr;
  }
  if (PyList_Check(container.ptr()) && PyLong_CheckExact(key.ptr())) {
    const Py_ssize_t index = PyLong_AsSsize_t(key.ptr());
    return index < PyList_GET_SIZE(container.ptr()) ? PyList_GET_ITEM(container.ptr(), index)
                                                    : nullptr;
  }
  return nullptr;
}

bool is_assigned(nb::handle assignment, nb::handle tree) {
  if (!is_container(tree)) {
    return PyLong_CheckExact(assignment.ptr());
  }
  const Recursion recursion;
  if (!PyDict_CheckExact(assignment.ptr())) {
    return false;
  }
  const auto items = items_of(tree);
  return std::all_of(items.begin(), items.end(), [&](const Item& item) {
    PyObject* child = dict_item(assignment, item.key);
    return child && is_assigned(child, item.child);
  });
}

void store(nb::handle container, nb::handle key, nb::handle value) {
  if (PyDict_Check(container.ptr())) {
    if (PyDict_SetItem(container.ptr(), key.ptr(), value.ptr()) != 0) {
      throw nb::python_error();
    }
    return;
  }
  const Py_ssize_t index = PyLong_AsSsize_t(key.ptr());
  if (PyList_SetItem(container.ptr(), index, value.inc_ref().ptr()) != 0) {
    throw nb::python_error();
  }
}

} // namespace mlx_opt::python
