// The results of a part that does not run in place.
#include "bindings/part.h"
#include "mlx/utils.h"
#include "mlx_opt/graph/sums.h"
#include "mlx_opt/graph/tracing.h"

namespace mlx_opt::python {

bool Part::is_traced() {
  ArrayRefs arrays = leaves().operands();
  if (scale_) {
    arrays.push_back(&scale_->value);
  }
  if (scale_ && scale_->max_value) {
    arrays.push_back(&*scale_->max_value);
  }
  for (const auto& [scalars, formula] : groups_) {
    arrays.push_back(&scalars.learning_rate);
    arrays.push_back(&scalars.step);
    for (const Scalar& hyper : scalars.hypers) {
      if (const auto* x = std::get_if<mx::array>(&hyper)) {
        arrays.push_back(x);
      }
    }
  }
  return traced_for_gradient(arrays);
}

// MLX's norm of complex gradients is complex, and so is the scale computed from it.
bool Part::has_real_scale() const {
  return !scale_ || !mx::issubdtype(scale_->value.dtype(), mx::complexfloating);
}

const nb::object& Part::object_of(Successor& successor) {
  if (!successor.object.is_valid()) {
    successor.object = nb::cast(successor.array);
  }
  return successor.object;
}

// If only the trees and the part refer to the object that was found there, it gets the new array,
// which no one else can observe and which takes a fraction of the time of a new object.
void Part::put(Successor& successor) {
  const auto& [leaf, container, key, before, array, object] = successor;
  // The lookup first: the comparison with another key may run Python code.
  const bool shared = stored(container, key) != before.ptr() || Py_REFCNT(before.ptr()) > 2;
  if (shared || object.is_valid()) {
    store(container, key, object_of(successor));
  } else {
    array_of(before) = std::move(successor.array);
  }
}

void Part::settle_served() {
  if (is_traced() || !has_real_scale()) {
    for (Leaf& leaf : leaves_) {
      leaf.served = false;
    }
    served_leaves_.reset();
  }
}

std::vector<std::vector<mx::array>> Part::sums(bool by_operations) {
  collect();
  settle_served();
  return leaves().size() == 0 ? std::vector<std::vector<mx::array>>()
                              : sums_of(request(), leaves(), by_operations);
}

std::vector<std::tuple<int, mx::array, mx::array, nb::object>> Part::unserved() {
  collect();
  settle_served();
  std::vector<std::tuple<int, mx::array, mx::array, nb::object>> unserved;
  for (const Leaf& leaf : leaves_) {
    if (!leaf.served) {
      unserved.emplace_back(
          leaf.group, array_of(leaf.gradient), array_of(leaf.parameter), leaf.state);
    }
  }
  return unserved;
}

void Part::take(std::vector<mx::array> outputs) {
  new_parameters_.clear();
  new_slots_.clear();
  std::vector<size_t> served;
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (leaves_[i].served) {
      served.push_back(i);
    }
  }
  new_parameters_.reserve(served.size());
  new_slots_.reserve(outputs.size() - served.size());
  auto next = outputs.begin();
  // An array that others hold gets a new object, which is made before anything changes.
  const auto push = [&](std::vector<Successor>& successors,
                        size_t i,
                        nb::handle container,
                        nb::handle key,
                        nb::handle before) {
    successors.push_back({i, container, key, before, std::move(*next++), {}});
    if (Py_REFCNT(before.ptr()) > 2) {
      object_of(successors.back());
    }
  };
  for (size_t position : leaves().order()) {
    const size_t i = served[position];
    const Leaf& leaf = leaves_[i];
    push(new_parameters_, i, leaf.container, leaf.key, leaf.parameter);
    const auto& names = slot_names_[leaf.kind];
    for (size_t k = 0; k < names.size(); ++k) {
      push(new_slots_, i, leaf.state, names[k], slots_[leaf.first_slot + k]);
    }
  }
}

void Part::stage_formula() {
  staged_ = true;
  results_.assign(leaves_.size(), {});
  entries_.clear();
  std::unordered_map<PyObject*, nb::dict> states; // the formula's copies, by the original state
  for (size_t i = 0; i < leaves_.size(); ++i) {
    const Leaf& leaf = leaves_[i];
    if (leaf.served) {
      continue;
    }
    nb::dict& state = states[leaf.state.ptr()];
    if (!state.is_valid() || state.size() == 0) {
      state = PyDict_Check(leaf.state.ptr()) ? nb::steal<nb::dict>(PyDict_Copy(leaf.state.ptr()))
                                             : nb::dict();
      for (Successor& slot : new_slots_) {
        if (slot.container.is(leaf.state)) {
          state[slot.key] = object_of(slot);
        }
      }
    }
    const nb::object& formula = groups_[leaf.group].formula;
    results_[i] =
        (around_.is_valid() ? around_(formula) : formula)(leaf.gradient, leaf.parameter, state);
    if (!is_array(results_[i])) {
      throw nb::type_error("the formula of a step must return an array");
    }
    for (const auto& [key, value] : items_of(state)) {
      entries_.push_back({leaf.state, key, value});
    }
  }
}

nb::object Part::tree() {
  if (!staged_) {
    throw std::logic_error("a part has no tree before it is staged");
  }
  for (Successor& parameter : new_parameters_) {
    results_[parameter.leaf] = object_of(parameter);
  }
  size_t node = 0, leaf = 0;
  return rebuilt(node, leaf);
}

nb::object Part::rebuilt(size_t& node, size_t& leaf) const {
  const Node& here = nodes_[node++];
  if (here.value.is_valid()) {
    return here.value;
  }
  if (!here.type.is_valid()) {
    return results_[leaf++];
  }
  if (PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(here.type.ptr()), &PyDict_Type)) {
    nb::dict result;
    for (size_t i = 0; i < here.children; ++i) {
      const nb::object& key = nodes_[node].key.is_valid() ? nodes_[node].key : leaves_[leaf].key;
      result[key] = rebuilt(node, leaf);
    }
    return result;
  }
  nb::list result;
  for (size_t i = 0; i < here.children; ++i) {
    result.append(rebuilt(node, leaf));
  }
  if (here.type.is(reinterpret_cast<PyObject*>(&PyList_Type))) {
    return result;
  }
  return nb::hasattr(here.type, "_fields") ? here.type(*result) : here.type(result);
}

void Part::commit() {
  for (Successor& slot : new_slots_) {
    put(slot);
  }
  for (const auto& [dict, key, value] : entries_) {
    if (PyDict_Check(dict.ptr())) {
      store(dict, key, value);
    }
  }
}

void Part::assign() {
  for (Successor& parameter : new_parameters_) {
    put(parameter);
  }
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (!leaves_[i].served) {
      store(leaves_[i].container, leaves_[i].key, results_[i]);
    }
  }
}

} // namespace mlx_opt::python
