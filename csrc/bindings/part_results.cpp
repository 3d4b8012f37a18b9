// The results of a part that does not run in place.
#include "bindings/part.h"
#include "mlx/utils.h"
#include "mlx_opt/graph/ops.h"
#include "mlx_opt/graph/tracing.h"

namespace mlx_opt::python {

bool Part::is_traced() {
  std::vector<mx::array> arrays = {settled_.scalars.learning_rate, settled_.scalars.step};
  if (settled_.scale) {
    arrays.push_back(settled_.scale->value);
  }
  for (const Scalar& hyper : settled_.scalars.hypers) {
    if (const auto* x = std::get_if<mx::array>(&hyper)) {
      arrays.push_back(*x);
    }
  }
  for (const mx::array* x : leaves().operands()) {
    arrays.push_back(*x);
  }
  return traced_for_gradient(arrays);
}

// MLX's norm of complex gradients is complex, and so is the scale computed from it.
bool Part::has_real_scale() const {
  return !settled_.scale || !mx::issubdtype(settled_.scale->value.dtype(), mx::complexfloating);
}

void Part::stage() {
  collect();
  results_.assign(leaves_.size(), {});
  entries_.clear();
  if (is_traced() || !has_real_scale()) {
    for (Leaf& leaf : leaves_) {
      leaf.served = false;
    }
  }
  std::vector<size_t> served;
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (leaves_[i].served) {
      served.push_back(i);
    }
  }
  const mx::Stream stream = mx::default_stream(mx::default_device());
  const Leaves leaves = this->leaves();
  auto outputs = successors({&program_, {settled_.scalars}, settled_.scale, stream}, leaves);
  auto next = outputs.begin();
  for (size_t position : leaves.order()) {
    const size_t i = served[position];
    results_[i] = nb::cast(std::move(*next++));
    for (const nb::str& name : slot_names_[leaves_[i].kind]) {
      entries_.push_back({leaves_[i].state, name, nb::cast(std::move(*next++))});
    }
  }
  const size_t from_kernels = entries_.size();
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
      for (size_t k = 0; k < from_kernels; ++k) {
        if (entries_[k].dict.is(leaf.state)) {
          state[entries_[k].key] = entries_[k].value;
        }
      }
    }
    results_[i] = formula_(leaf.gradient, leaf.parameter, state);
    if (!is_array(results_[i])) {
      throw nb::type_error("the formula of a step must return an array");
    }
    for (const auto& [key, value] : items_of(state)) {
      entries_.push_back({leaf.state, key, value});
    }
  }
}

nb::object Part::tree() const {
  size_t node = 0, leaf = 0;
  return rebuilt(node, leaf);
}

nb::object Part::rebuilt(size_t& node, size_t& leaf) const {
  const Node& here = nodes_[node++];
  if (!here.type.is_valid()) {
    return results_[leaf++];
  }
  if (PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(here.type.ptr()), &PyDict_Type)) {
    nb::dict result;
    for (size_t i = 0; i < here.children; ++i) {
      const nb::object key = nodes_[node].type.is_valid() ? nodes_[node].key : leaves_[leaf].key;
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
  for (const auto& [dict, key, value] : entries_) {
    if (PyDict_Check(dict.ptr())) {
      store(dict, key, value);
    }
  }
}

void Part::assign() {
  for (size_t i = 0; i < leaves_.size(); ++i) {
    store(leaves_[i].container, leaves_[i].key, results_[i]);
  }
}

} // namespace mlx_opt::python
