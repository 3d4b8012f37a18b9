// The results of a part that does not run in place.
#include "bindings/part.h"

#include <algorithm>

#include "mlx/utils.h"
#include "mlx_opt/graph/masters.h"
#include "mlx_opt/graph/sums.h"
#include "mlx_opt/graph/tracing.h"
#include "mlx_opt/graph/weight_norms.h"

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

bool Part::may_overwrite() const {
  const mx::Device device = mx::default_device();
  return may_overwrite_ && has_real_scale() &&
         (!norms_.is_valid() || kernels_take_norms(program_, device));
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
  if (norms_.is_valid()) {
    stage_norms();
  }
}

// Adds the norms of the leaves that the formula updates to those of the others.
void Part::stage_norms() {
  const auto is_served = [](const Leaf& leaf) { return leaf.served; };
  const bool has_served = std::any_of(leaves_.begin(), leaves_.end(), is_served);
  if (has_served && std::all_of(leaves_.begin(), leaves_.end(), is_served)) {
    return;
  }
  WeightNorms norms(groups_.size(), mx::default_stream(mx::default_device()));
  if (has_served) {
    norms.add(*staged_norms_);
  }
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (!leaves_[i].served) {
      const auto [before, after] = weights_of(i);
      norms.add(leaves_[i].group, before, after);
    }
  }
  staged_norms_ = norms.norms();
}

// The weight of a leaf that the formula updates, before and after.
std::pair<mx::array, mx::array> Part::weights_of(size_t i) const {
  const Leaf& leaf = leaves_[i];
  const mx::array& before = array_of(leaf.parameter);
  const mx::array& after = array_of(results_[i]);
  const size_t master = place_of_master(program_, leaf.kind);
  if (master == 0 || slots_.size() < leaf.first_slot + master) {
    return {before, after};
  }
  const nb::str& name = slot_names_[leaf.kind][master - 1];
  const nb::object& old_master = slots_[leaf.first_slot + master - 1];
  const auto entry = std::find_if(entries_.rbegin(), entries_.rend(), [&](const Entry& x) {
    return x.dict.is(leaf.state) && x.key.equal(name);
  });
  if (entry == entries_.rend() || !is_array(entry->value) || !is_array(old_master)) {
    return {before, after};
  }
  const mx::Stream stream = mx::default_stream(mx::default_device());
  return {
      weight_of(before, array_of(old_master), stream),
      weight_of(after, array_of(entry->value), stream)};
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
  put_norms();
}

void Part::put_norms() {
  if (norms_.is_valid() && staged_norms_) {
    array_of(norms_) = std::move(*staged_norms_);
    staged_norms_.reset();
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
