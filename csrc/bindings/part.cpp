// How the leaves of a part are found and checked.
#include "bindings/part.h"

#include <algorithm>
#include <unordered_set>

#include "mlx/ops.h"
#include "mlx_opt/backend/find.h"

namespace mlx_opt::python {
namespace {

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

nb::object slot_of(nb::handle state, nb::handle name) {
  if (!PyDict_Check(state.ptr())) {
    return {};
  }
  if (PyDict_CheckExact(state.ptr())) {
    return nb::borrow(dict_item(state, name));
  }
  PyObject* slot = PyObject_GetItem(state.ptr(), name.ptr());
  if (!slot) {
    PyErr_Clear();
  }
  return nb::steal(slot);
}

} // namespace

Part::Part(
    const Program& program,
    std::vector<PartGroup> groups,
    Assignment assignment,
    nb::object gradients,
    nb::object parameters,
    nb::object state,
    bool initialized,
    bool assigned,
    bool fused)
    : program_(program),
      groups_(std::move(groups)),
      assignment_(std::move(assignment)),
      initialized_(initialized),
      assigned_(assigned),
      available_(fused && mlx_opt::available(mx::default_device())),
      may_overwrite_(available_ && program.is_fused()),
      gradients_(std::move(gradients)),
      parameters_(std::move(parameters)),
      state_(std::move(state)) {
  for (size_t kind = 0; kind < program_.kinds(); ++kind) {
    auto& names = slot_names_.emplace_back();
    for (const SlotInfo* slot : program_.slots(kind)) {
      names.push_back(nb::steal<nb::str>(PyUnicode_InternFromString(slot->name)));
    }
  }
}

void Part::collect() {
  if (collected_) {
    return;
  }
  collected_ = true;
  walk(gradients_, parameters_, state_, nb::none(), assignment_.tree, nullptr);
  gradients_ = parameters_ = state_ = {};
  leave_shared_state_to_the_formula();
}

// Adds the nodes and leaves of a tree; returns false if it added none.
bool Part::walk(
    nb::handle gradients,
    nb::handle parameters,
    nb::handle state,
    nb::handle container,
    nb::handle groups,
    const Path* path) {
  if (!is_container(gradients)) {
    const int group = group_of(gradients, groups, path);
    return add_leaf(gradients, parameters, state, container, group, path);
  }
  const Recursion recursion;
  const std::vector<Item> items = items_of(gradients);
  plain_ &= python::is_plain(gradients);
  leaves_.reserve(leaves_.size() + items.size());
  nodes_.reserve(nodes_.size() + items.size() + 1);
  slots_.reserve(slots_.size() + items.size() * slot_names_[0].size());
  const size_t node = nodes_.size();
  nodes_.push_back(
      {path ? nb::borrow(path->key) : nb::none(), nb::borrow(gradients.type()), {}, 0});
  for (const auto& [child_key, child] : items) {
    const Path here{path, child_key};
    plain_ &= has_own_lookup(parameters, child_key) && has_own_lookup(state, child_key);
    const nb::object parameter = entry(parameters, child_key, "parameter", here);
    // The assignment's tree, which no one changes, holds what it has.
    PyObject* found = PyDict_Check(groups.ptr()) ? dict_item(groups, child_key) : nullptr;
    const nb::handle child_groups = found ? found : Py_None;
    const bool is_leaf = !is_container(child);
    const int group = is_leaf ? group_of(child, child_groups, &here) : 0;
    const nb::object child_state = group < 0      ? nb::none()
                                   : initialized_ ? entry(state, child_key, "optimizer state", here)
                                                  : entry_or_none(state, child_key);
    nodes_[node].children +=
        is_leaf ? add_leaf(child, parameter, child_state, parameters, group, &here)
                : walk(child, parameter, child_state, parameters, child_groups, &here);
  }
  return true;
}

// Adds a leaf, or what takes its place if another part updates it; returns false if it added none.
bool Part::add_leaf(
    nb::handle gradient,
    nb::handle parameter,
    nb::handle state,
    nb::handle container,
    int group,
    const Path* path) {
  if (group >= 0) {
    nodes_.push_back({});
    collect_leaf(gradient, parameter, state, container, static_cast<uint16_t>(group), path);
    return true;
  }
  // A list needs something in the leaf's place.
  if (group == Assignment::other_part && PyDict_Check(container.ptr())) {
    return false;
  }
  const nb::object key = path ? nb::borrow(path->key) : nb::none();
  nb::object value = group == Assignment::unchanged ? nb::borrow(parameter) : nb::dict();
  nodes_.push_back({key, {}, std::move(value), 0});
  return true;
}

// The leaf's group in this part, or what Assignment has instead.
int Part::group_of(nb::handle gradient, nb::handle groups, const Path* path) const {
  if (assignment_.tree.is_none() || !is_array(gradient)) {
    return 0;
  }
  const size_t position =
      PyLong_CheckExact(groups.ptr()) ? PyLong_AsSize_t(groups.ptr()) : SIZE_MAX;
  if (position >= assignment_.positions.size()) {
    PyErr_Clear();
    const std::string message = prefix(path) + "the tree of gradients changed during the step";
    throw nb::value_error(message.c_str());
  }
  return assignment_.positions[position];
}

void Part::collect_leaf(
    nb::handle gradient,
    nb::handle parameter,
    nb::handle state,
    nb::handle container,
    uint16_t group,
    const Path* path) {
  for (auto [object, what] : {std::pair{gradient, "gradient"}, {parameter, "parameter"}}) {
    if (!is_array(object)) {
      const std::string message =
          prefix(path) + what + " must be an mlx.core.array, got " + class_name(object);
      throw nb::type_error(message.c_str());
    }
  }
  if (assigned_ && (!path || PyTuple_Check(container.ptr()))) {
    const std::string message =
        prefix(path) + "the parameter is in a tuple, which cannot be updated; use a list";
    throw nb::type_error(message.c_str());
  }
  const size_t kind = program_.kind_of(array_of(parameter));
  const size_t first_slot = slots_.size();
  const bool has_state = collect_slots(state, kind, path);
  leaves_.push_back(
      {nb::borrow(gradient),
       nb::borrow(parameter),
       nb::borrow(state),
       nb::borrow(container),
       path ? nb::borrow(path->key) : nb::none(),
       first_slot,
       static_cast<uint16_t>(kind),
       group,
       false,
       key_of(path)});
  Leaf& leaf = leaves_.back();
  if (!has_state) {
    may_overwrite_ = false;
    if (array_of(gradient).shape() != array_of(parameter).shape()) {
      const mx::array* operands[] = {&array_of(parameter), &array_of(gradient)};
      throw nb::value_error((prefix(path) + shape_problem({}, operands)).c_str());
    }
    return;
  }
  assignable_ &= has_own_assignment(container);
  if (!has_arrays(leaf)) {
    may_overwrite_ = false;
    return;
  }
  operands_.clear();
  push_operands(leaf, operands_);
  const std::string problem = shape_problem(program_.slots(kind), operands_.data());
  if (!problem.empty()) {
    throw nb::value_error((prefix(path) + problem).c_str());
  }
  const std::string of_codes = codes_problem(program_.slots(kind), operands_.data());
  if (!of_codes.empty()) {
    throw nb::value_error((prefix(path) + of_codes).c_str());
  }
  leaf.served = available_ && is_served(program_.slots(kind), operands_.data());
  may_overwrite_ &= leaf.served;
}

uint32_t Part::key_of(const Path* path) const {
  // The path's text is put together only if it is needed.
  return program_.rounding_seed() ? program_.rounding_key(path ? path->text() : "") : 0;
}

// False for a leaf whose state has numbers, lists or arrays of another package: the formula takes
// what mlx.optimizers takes.
bool Part::has_arrays(const Leaf& leaf) const {
  const auto first = slots_.begin() + static_cast<std::ptrdiff_t>(leaf.first_slot);
  const auto count = static_cast<std::ptrdiff_t>(slot_names_[leaf.kind].size());
  return std::all_of(first, first + count, [](const nb::object& x) { return is_array(x); });
}

// True if all slots are there.
bool Part::collect_slots(nb::handle state, size_t kind, const Path* path) {
  plain_ &= PyDict_CheckExact(state.ptr());
  for (const nb::str& name : slot_names_[kind]) {
    nb::object slot = slot_of(state, name);
    if (!slot.is_valid() && !initialized_) {
      return false;
    }
    if (!slot.is_valid()) {
      const std::string message =
          prefix(path) + "the optimizer state has no array \"" + name.c_str() + "\"";
      throw nb::key_error(message.c_str());
    }
    slots_.push_back(std::move(slot));
  }
  return true;
}

// Leaves that share a dict of state are updated one after another, as mlx.optimizers does; the
// kernels would update all from the same old values.
void Part::leave_shared_state_to_the_formula() {
  const bool shared = std::any_of(slots_.begin(), slots_.end(), [](const nb::object& slot) {
    return Py_REFCNT(slot.ptr()) > 2;
  });
  if (!shared) {
    return;
  }
  std::unordered_set<PyObject*> seen;
  for (Leaf& leaf : leaves_) {
    if (!slot_names_[leaf.kind].empty() && !seen.insert(leaf.state.ptr()).second) {
      leaf.served = false;
      may_overwrite_ = false;
    }
  }
}

void Part::push_operands(const Leaf& leaf, std::vector<mx::array*>& operands) {
  operands.push_back(&array_of(leaf.parameter));
  for (size_t k = 0; k < slot_names_[leaf.kind].size(); ++k) {
    operands.push_back(&array_of(slots_[leaf.first_slot + k]));
  }
  operands.push_back(&array_of(leaf.gradient));
}

bool Part::is_in_place() const {
  for (const Leaf& leaf : leaves_) {
    if (stored(leaf.container, leaf.key) != leaf.parameter.ptr()) {
      return false;
    }
    const auto& names = slot_names_[leaf.kind];
    for (size_t k = 0; k < names.size(); ++k) {
      if (stored(leaf.state, names[k]) != slots_[leaf.first_slot + k].ptr()) {
        return false;
      }
    }
  }
  return true;
}

bool Part::is_unshared() const {
  const auto referred_twice = [](const nb::object& x) { return Py_REFCNT(x.ptr()) == 2; };
  return std::all_of(slots_.begin(), slots_.end(), referred_twice) &&
         std::all_of(leaves_.begin(), leaves_.end(), [&](const Leaf& leaf) {
           return referred_twice(leaf.parameter);
         });
}

const Leaves& Part::leaves() {
  if (!served_leaves_) {
    served_leaves_.emplace(program_, leaves_.size());
    for (const Leaf& leaf : leaves_) {
      if (leaf.served) {
        auto& kind = served_leaves_->add(leaf.kind, leaf.group, leaf.rounding_key);
        push_operands(leaf, kind.arrays);
      }
    }
  }
  return *served_leaves_;
}

bool Part::has_tracer() const {
  return std::any_of(leaves_.begin(), leaves_.end(), [](const Leaf& leaf) {
    return array_of(leaf.gradient).is_tracer();
  });
}

std::vector<mx::array> Part::gradients() {
  collect();
  std::vector<mx::array> gradients;
  for (const Leaf& leaf : leaves_) {
    gradients.push_back(array_of(leaf.gradient));
  }
  return gradients;
}

Request Part::request() {
  std::vector<GroupScalars> groups;
  groups.reserve(groups_.size());
  for (const PartGroup& group : groups_) {
    groups.push_back(group.scalars);
  }
  mx::array* norms = nullptr;
  if (norms_.is_valid()) {
    staged_norms_ = mx::zeros({static_cast<int>(groups_.size()), 2}); // if no leaf is updated
    norms = &*staged_norms_;
  }
  return {&program_, std::move(groups), scale_, mx::default_stream(mx::default_device()), norms};
}

mlx_opt::Part Part::in_place() {
  return {request(), leaves()};
}

} // namespace mlx_opt::python
